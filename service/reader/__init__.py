"""The embedded reader: a small model of the project's own that answers by quoting.

`MODEL_DIR` holds weights, tokenizer and model card; `python -m eval.reader.train` makes them.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from service.errors import ModelError

MODEL_DIR = Path(__file__).parent / "model"
MANIFEST = "manifest.json"


def verify_model(folder: Path = MODEL_DIR) -> dict[str, str]:
    """SHA-256 of each file of the model, by name, checked against its manifest.

    Raises ModelError naming the first file that is missing or changed.
    """
    manifest = folder / MANIFEST
    if not manifest.is_file():
        raise ModelError(f"The embedded model has no {MANIFEST}.", hint="Reinstall folio-serve.", param="model")
    expected: dict[str, str] = json.loads(manifest.read_text(encoding="utf-8"))["sha256"]
    for name, digest in expected.items():
        file = folder / name
        if not file.is_file():
            raise ModelError(f"The embedded model lacks {name}.", hint="Reinstall folio-serve.", param="model")
        if hashlib.sha256(file.read_bytes()).hexdigest() != digest:
            raise ModelError(
                f"The embedded model's {name} is not the file its manifest names.",
                hint="Reinstall folio-serve.",
                param="model",
            )
    return expected


def write_manifest(folder: Path = MODEL_DIR) -> None:
    """Write the manifest of every file in `folder`, the model card included."""
    files = sorted(f for f in folder.iterdir() if f.is_file() and f.name != MANIFEST)
    digests = {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in files}
    (folder / MANIFEST).write_text(json.dumps({"sha256": digests}, indent=2) + "\n", encoding="utf-8")

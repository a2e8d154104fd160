"""A model in a peer's own format, converted once and kept: a Llama checkpoint in float32, or a GGUF file.

Of a GGUF file a peer that does not read it gets the weights dequantised, as a checkpoint in float32, or what its own
converter makes of that.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

from eval.errors import EvalError
from eval.figures import ROOT
from eval.peers.setup import home, python_of

CONVERTERS: dict[str, tuple[str | None, str]] = {
    "openvino": ("openvino-export", "openvino_export.py"),
    "llama_cpp": ("llama_cpp", "gguf_export.py"),
    "ctranslate2": ("ctranslate2", "ctranslate2_export.py"),
    "transformers": (None, "dequantise.py"),
}
"""Environment and program of each; None is the running one."""
_READ_GGUF = ("folio", "llama_cpp")


def converted(model: Path, peer: str, weights: str = "") -> Path:
    """The model in the format of a peer's worker; as it is for those that read it.

    Args:
        weights: what the converter shall keep them in, besides its default (openvino: int8, int4).

    Raises:
        EvalError: the conversion failed; its last lines are in the message.
    """
    if model.is_file():
        if peer in _READ_GGUF:
            return model
        plain = _made(model, "transformers", "")
        return plain if peer == "transformers" else _made(plain, peer, weights)
    if peer in ("folio", "transformers"):
        return model
    made = _made(model, peer, weights)
    return made / "model.gguf" if peer == "llama_cpp" else made


def _made(model: Path, peer: str, weights: str) -> Path:
    environment, script = CONVERTERS[peer]
    program = Path(__file__).parent / "exporters" / script
    target = home() / "models" / "-".join(filter(None, (_fingerprint(model, program), peer, weights)))
    if target.exists():
        return target
    python = python_of(environment) if environment else sys.executable
    aside = target.with_name(target.name + ".partial")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    command = [str(python), str(program), str(model), str(aside), *filter(None, (weights,))]
    own = {**os.environ, "PYTHONPATH": str(ROOT)} if environment is None else None
    done = subprocess.run(command, capture_output=True, text=True, env=own)
    if done.returncode:
        tail = "\n".join(done.stderr.strip().splitlines()[-5:])
        raise EvalError(f"{peer} could not convert {model.name}:\n{tail}")
    aside.rename(target)
    return target


def _fingerprint(model: Path, program: Path) -> str:
    digest = hashlib.sha256()
    parts = [model] if model.is_file() else [model / "config.json", *sorted(model.glob("*.safetensors"))]
    for path in [program, *parts]:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]

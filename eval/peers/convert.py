"""A transformers checkpoint of the Llama family in a peer's own format, fp32, converted once and kept."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from pathlib import Path

from eval.errors import EvalError
from eval.peers.setup import home, python_of

CONVERTERS = {
    "openvino": ("openvino-export", "openvino_export.py"),
    "llama_cpp": ("llama_cpp", "gguf_export.py"),
    "ctranslate2": ("ctranslate2", "ctranslate2_export.py"),
}


def converted(model: Path, peer: str) -> Path:
    """The model's folder in the peer's format; the model's own for peers that read transformers' format.

    Raises:
        EvalError: the conversion failed; its last lines are in the message.
    """
    if peer not in CONVERTERS:
        return model
    environment, script = CONVERTERS[peer]
    program = Path(__file__).parent / "exporters" / script
    target = home() / "models" / f"{_fingerprint(model, program)}-{peer}"
    if target.exists():
        return target
    python = python_of(environment)
    aside = target.with_name(target.name + ".partial")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    done = subprocess.run([str(python), str(program), str(model), str(aside)], capture_output=True, text=True)
    if done.returncode:
        tail = "\n".join(done.stderr.strip().splitlines()[-5:])
        raise EvalError(f"{peer} could not convert {model.name}:\n{tail}")
    aside.rename(target)
    return target


def _fingerprint(model: Path, program: Path) -> str:
    digest = hashlib.sha256()
    for path in [program, model / "config.json", *sorted(model.glob("*.safetensors"))]:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]

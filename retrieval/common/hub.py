"""Models of the hub."""

from __future__ import annotations

from pathlib import Path

OTHER_FORMATS = ["*.bin", "*.onnx", "*.h5", "*.ot", "openvino/*", "onnx/*"]


def fetch(name: str) -> Path:
    """The folder of a model, fetched unless it is at hand, of its weights the safetensors alone. Errors: the hub's."""
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(name, ignore_patterns=OTHER_FORMATS))

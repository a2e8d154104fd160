"""Files of KV: tensors with the SHA-256 of their bytes, written aside and renamed: one is whole or not there."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor


def write(path: Path, content: Mapping[str, Tensor], about: Mapping[str, str]) -> None:
    """Write tensors on the CPU and what is said about them; nothing is left where that fails (a full disk)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".part")
    try:
        save_file(dict(content), aside, metadata={**about, "sha256": _digest(content)})
        with open(aside, "rb+") as file:
            os.fsync(file.fileno())
        aside.replace(path)
    except (OSError, SafetensorError):
        aside.unlink(missing_ok=True)
        raise


def read_about(path: Path) -> dict[str, str]:
    """What is said about a file's tensors. Raises OSError or SafetensorError."""
    with safe_open(path, framework="pt") as file:
        return file.metadata() or {}


def check(path: Path) -> None:
    """Raises SafetensorError where the tensors are not those that were written."""
    with safe_open(path, framework="pt") as file:
        content = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if _digest(content) != (file.metadata() or {}).get("sha256"):
            raise SafetensorError("its bytes differ from their hash")


def _digest(content: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(content):
        digest.update(content[name].contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()

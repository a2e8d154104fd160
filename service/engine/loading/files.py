"""What can be wrong with the files of a checkpoint's folder before any of them is used."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from service.errors import ModelError

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt", "tokenizer_config.json")
JSON_FILES = (
    "config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "adapter_config.json", "model.safetensors.index.json", "pytorch_model.bin.index.json",
)  # fmt: skip
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
"""In transformers' order: the first that is there is read."""

_DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
_LFS = b"version https://git-lfs.github.com/spec/"
_MARKS = (b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")


def check_files(name: str, folder: Path) -> None:
    """Refuse what a reader of the folder would trip over.

    Raises:
        ModelError: a file is a Git LFS pointer, is cut off, begins with a byte order mark or is no JSON; names it.
    """
    for file in JSON_FILES:
        if (folder / file).is_file():
            read_json(name, folder / file)
    for file in TOKENIZER_FILES:
        if (folder / file).is_file():
            _refuse_pointer(name, folder / file)
            _refuse_mark(name, folder / file)
    for path in weight_files(name, folder):
        if not path.is_file():
            raise ModelError(
                f"The model {name!r} lacks {path.name}, which its index names.", hint="Fetch it again.", param="model"
            )
        check_weights(name, path)


def check_weights(name: str, path: Path) -> None:
    """Refuse a file of weights that is a pointer or ends before its last tensor.

    Raises:
        ModelError: names it.
    """
    _refuse_pointer(name, path)
    if path.suffix == ".safetensors":
        _safetensors_header(name, path)


def read_json(name: str, path: Path) -> dict[str, Any]:
    """The object in a JSON file of a checkpoint.

    Raises:
        ModelError: it is a pointer, begins with a byte order mark, or is no JSON object.
    """
    _refuse_pointer(name, path)
    _refuse_mark(name, path)
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path.name} of the model {name!r} is not JSON: {error}.", param="model") from error
    if not isinstance(found, dict):
        raise ModelError(f"{path.name} of the model {name!r} holds no JSON object.", param="model")
    return found


def weight_files(name: str, folder: Path) -> list[Path]:
    """The files that transformers would read weights from, there or not; none where the folder has no weights."""
    first = next((folder / file for file in WEIGHTS if (folder / file).is_file()), None)
    if first is None or not first.name.endswith(".index.json"):
        return [first] if first else []
    parts = read_json(name, first).get("weight_map")
    if not isinstance(parts, dict) or not all(isinstance(part, str) for part in parts.values()):
        raise ModelError(f"{first.name} of the model {name!r} has no weight_map.", param="model")
    return [folder / part for part in sorted(set(parts.values()))]


def count_parameters(name: str, folder: Path) -> int | None:
    """Numbers in the safetensors of a folder, None where it has other weights or none."""
    paths = weight_files(name, folder)
    if not paths or any(path.suffix != ".safetensors" for path in paths):
        return None
    headers = [_safetensors_header(name, path) for path in paths]
    return sum(math.prod(tensor["shape"]) for header in headers for tensor in header.values())


def main_dtype(name: str, folder: Path) -> str | None:
    """What most numbers of a folder's safetensors are stored in, by torch's name; None where it has others or none."""
    paths = weight_files(name, folder)
    if not paths or any(path.suffix != ".safetensors" for path in paths):
        return None
    counts: dict[str, int] = {}
    for path in paths:
        for tensor in _safetensors_header(name, path).values():
            counts[tensor["dtype"]] = counts.get(tensor["dtype"], 0) + math.prod(tensor["shape"])
    return _DTYPES.get(max(counts, key=counts.__getitem__)) if counts else None


def _refuse_pointer(name: str, path: Path) -> None:
    with path.open("rb") as file:
        if file.read(len(_LFS)) == _LFS:
            raise ModelError(
                f"{path.name} of the model {name!r} is a Git LFS pointer, not the file itself.",
                hint="Fetch the files with `git lfs pull`.",
                param="model",
            )


def _refuse_mark(name: str, path: Path) -> None:
    """SentencePiece's tokenizer.model, which is no text, begins with other bytes."""
    with path.open("rb") as file:
        if file.read(3).startswith(_MARKS):
            raise ModelError(
                f"{path.name} of the model {name!r} begins with a byte order mark (BOM).",
                hint="Save it as UTF-8 without one.",
                param="model",
            )


def _safetensors_header(name: str, path: Path) -> dict[str, dict[str, Any]]:
    """Shape and place of each tensor; refuses a file that ends before its last one."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        text = file.read(length) if 8 + length <= size else b""
    try:
        tensors = {key: value for key, value in json.loads(text).items() if key != "__metadata__"} if text else None
        end = 8 + length + max((tensor["data_offsets"][1] for tensor in tensors.values()), default=0) if tensors else 0
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise ModelError(f"{path.name} of the model {name!r} is no safetensors file.", param="model") from error
    if tensors is None or end > size:
        whole = f" of {end:,}" if end else ""
        raise ModelError(
            f"{path.name} of the model {name!r} is cut off: it has {size:,}{whole} bytes.",
            hint="Fetch it again.",
            param="model",
        )
    return tensors

"""Reading GGUF, llama.cpp's one-file checkpoints: metadata and the places of tensors, none of which is read here.

The format is in ggml's docs/gguf.md: a header, key and value pairs, a table of tensors, and their aligned data. A file
comes from anywhere, so every length and count is checked against what the file has.
"""

from __future__ import annotations

import ctypes
import hashlib
import math
import mmap
import re
import struct
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from service.errors import ModelError

VERSIONS = (2, 3)
_MAGIC = b"GGUF"
_SPLIT = re.compile(r"^(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf$")
_LFS = b"version https://git-lfs.github.com/spec/"
_STRING, _ARRAY = 8, 9
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_MOST_DIMENSIONS = 4


@dataclass(frozen=True)
class GGUFTensor:
    """One tensor of a file.

    Attributes:
        shape: as torch has it, the longest-striding dimension first.
        kind: what its numbers are stored as: F32, Q4_1 ….
        data: its bytes, mapped from the file: [rows, bytes a row], uint8.
    """

    name: str
    shape: tuple[int, ...]
    kind: str
    data: np.ndarray

    def forget(self) -> None:
        """Give back the memory that the file's pages take here; whoever looks again reads them anew."""
        address, page = self.data.ctypes.data, mmap.PAGESIZE
        first, last = -(-address // page) * page, (address + self.data.nbytes) // page * page
        if last > first and hasattr(mmap, "MADV_DONTNEED"):
            ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), mmap.MADV_DONTNEED)


@dataclass(frozen=True)
class GGUFFile:
    """A model in one GGUF file, or in the parts that it was split into."""

    paths: tuple[Path, ...]
    metadata: dict[str, Any]
    tensors: dict[str, GGUFTensor]

    @property
    def architecture(self) -> str:
        return str(self.metadata["general.architecture"])

    @property
    def num_parameters(self) -> int:
        return sum(math.prod(tensor.shape) for tensor in self.tensors.values())

    @property
    def num_bytes(self) -> int:
        return sum(path.stat().st_size for path in self.paths)

    @cached_property
    def sha256(self) -> str:
        """Of the file; of the parts' digests where there are several."""
        digests = [file_sha256(path, path.stat().st_mtime_ns) for path in self.paths]
        return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()

    def own(self, key: str) -> Any:
        """A value of the file's architecture (``attention.head_count``), None where the file does not say."""
        return self.metadata.get(f"{self.architecture}.{key}")


@lru_cache
def file_sha256(path: Path, _changed: int) -> str:
    """The hex digest of a file's bytes, which were written at that time (``st_mtime_ns``)."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def open_gguf(path: Path) -> GGUFFile:
    """A GGUF file with the other parts of its split, if it is part of one.

    Raises:
        ModelError: a part is missing, cut off, of another version or no GGUF; names it.
    """
    parts = _parts(path.expanduser().resolve())
    metadata: dict[str, Any] = {}
    tensors: dict[str, GGUFTensor] = {}
    for number, part in enumerate(parts):
        if not part.is_file():
            raise ModelError(f"There is no file {part.name} beside the other parts.", hint="Fetch it.", param="model")
        own, found = _Reader(part).read()
        if number == 0:
            metadata = own
        doubled = sorted(tensors.keys() & found.keys())
        if doubled:
            raise ModelError(f"{part.name} holds {doubled[0]}, as another part of it does.", param="model")
        tensors |= found
    name = parts[0].name
    if not isinstance(metadata.get("general.architecture"), str):
        raise ModelError(f"{name} does not say its architecture (general.architecture).", param="model")
    if metadata.get("split.count", 1) not in (0, len(parts)):
        raise ModelError(
            f"{name} is one of {metadata['split.count']} parts, and {len(parts)} are beside it under such a name.",
            hint="Name the parts …-00001-of-0000N.gguf, as they came.",
            param="model",
        )
    if not tensors:
        raise ModelError(f"{name} holds no weights.", hint="Perhaps it is the vocabulary alone.", param="model")
    return GGUFFile(tuple(parts), metadata, tensors)


def gguf_models(folder: Path) -> list[Path]:
    """The models in GGUF of a folder, of split ones the first part."""
    found = sorted(path for path in folder.glob("*.gguf") if path.is_file())
    return [path for path in found if (part := _SPLIT.match(path.name)) is None or int(part["number"]) == 1]


def _parts(path: Path) -> list[Path]:
    part = _SPLIT.match(path.name)
    if part is None or not 1 <= int(part["number"]) <= int(part["count"]):
        return [path]
    count = int(part["count"])
    return [path.with_name(f"{part['stem']}-{number:05}-of-{count:05}.gguf") for number in range(1, count + 1)]


class _Reader:
    """One pass over a file's head."""

    def __init__(self, path: Path) -> None:
        self.name = path.name
        size = path.stat().st_size
        with path.open("rb") as file:
            self.bytes: Any = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) if size else b""
        self.place = 0

    def read(self) -> tuple[dict[str, Any], dict[str, GGUFTensor]]:
        """Key and value pairs, and the tensors by name."""
        num_tensors, num_pairs = self._header()
        pairs = {}
        for _ in range(num_pairs):
            key = self._string()
            pairs[key] = self._value(self._number("I"))
        table = [self._entry() for _ in range(num_tensors)]
        alignment = pairs.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1:
            raise self._broken(f"has the alignment {alignment!r}")
        start = -(-self.place // alignment) * alignment
        tensors = {name: self._tensor(name, dims, kind, start + offset) for name, dims, kind, offset in table}
        if len(tensors) != num_tensors:
            raise self._broken("names a tensor twice")
        return pairs, tensors

    def _header(self) -> tuple[int, int]:
        head = bytes(self.bytes[: len(_LFS)])
        if head == _LFS:
            raise ModelError(
                f"{self.name} is a Git LFS pointer, not the file itself.",
                hint="Fetch it with `git lfs pull`.",
                param="model",
            )
        if head[:4] != _MAGIC:
            raise ModelError(f"{self.name} is no GGUF file: it does not begin with GGUF.", param="model")
        self.place = 4
        version = self._number("I")
        if version not in VERSIONS:
            swapped = int.from_bytes(version.to_bytes(4, "little"), "big") in VERSIONS
            what = "written for big-endian machines" if swapped else f"of GGUF version {version}"
            raise ModelError(
                f"{self.name} is {what}; Folio reads versions {' and '.join(map(str, VERSIONS))}, little-endian.",
                hint="Convert the model anew with llama.cpp.",
                param="model",
            )
        return self._number("Q"), self._number("Q")

    def _entry(self) -> tuple[str, tuple[int, ...], int, int]:
        """A line of the tensor table: name, shape, number of the kind, offset behind the table."""
        name = self._string()
        dimensions = self._number("I")
        if not 1 <= dimensions <= _MOST_DIMENSIONS:
            raise self._broken(f"has the tensor {name} in {dimensions} dimensions")
        shape = tuple(self._number("Q") for _ in range(dimensions))[::-1]
        return name, shape, self._number("I"), self._number("Q")

    def _tensor(self, name: str, shape: tuple[int, ...], kind: int, start: int) -> GGUFTensor:
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

        try:
            block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
        except (ValueError, KeyError):
            raise ModelError(
                f"{self.name} stores {name} in the tensor kind {kind}, which the package gguf does not know.",
                hint="Update it (pip install -U gguf), or take a file of kind Q4_K_M or Q8_0.",
                param="model",
            ) from None
        if not all(shape) or shape[-1] % block:
            raise self._broken(f"has the tensor {name} in the shape {shape}, which its kind cannot be")
        row = shape[-1] // block * block_bytes
        end = start + math.prod(shape[:-1]) * row
        if end > len(self.bytes):
            raise self._cut_off(end)
        data = np.frombuffer(self.bytes, np.uint8, end - start, start).reshape(-1, row)
        return GGUFTensor(name, shape, GGMLQuantizationType(kind).name, data)

    def _value(self, kind: int) -> Any:
        if kind in _NUMBERS:
            return self._number(_NUMBERS[kind])
        if kind == _STRING:
            return self._string()
        if kind != _ARRAY:
            raise self._broken(f"has a value of the unknown type {kind}")
        element, count = self._number("I"), self._number("Q")
        if element == _STRING:
            return self._strings(self._fits(count, 8))
        if element not in _NUMBERS:
            raise self._broken(f"has an array of the unknown type {element}")
        layout = struct.Struct(f"<{self._fits(count, struct.calcsize('<' + _NUMBERS[element]))}{_NUMBERS[element]}")
        return list(layout.unpack(self._take(layout.size)))

    def _number(self, code: str) -> Any:
        return struct.unpack("<" + code, self._take(struct.calcsize("<" + code)))[0]

    def _string(self) -> str:
        return self._take(self._number("Q")).decode("utf-8", "replace")

    def _strings(self, count: int) -> list[str]:
        """A vocabulary is a hundred thousand of them: one loop, and no call for each but the library's."""
        data, place, end, length_at = self.bytes, self.place, len(self.bytes), struct.Struct("<Q").unpack_from
        strings = []
        for _ in range(count):
            if place + 8 > end:
                raise self._cut_off()
            begin = place + 8
            place = begin + length_at(data, place)[0]
            if place > end:
                raise self._cut_off(place)
            strings.append(str(data[begin:place], "utf-8", "replace"))
        self.place = place
        return strings

    def _fits(self, count: int, width: int) -> int:
        """A count of things of ``width`` bytes at least, which must still be in the file."""
        if count * width > len(self.bytes) - self.place:
            raise self._cut_off()
        return count

    def _take(self, length: int) -> bytes:
        end = self.place + length
        if end > len(self.bytes):
            raise self._cut_off()
        taken = self.bytes[self.place : end]
        self.place = end
        return taken

    def _cut_off(self, whole: int = 0) -> ModelError:
        more = f" of at least {whole:,}" if whole else ""
        return ModelError(
            f"{self.name} is cut off: it has {len(self.bytes):,}{more} bytes.", hint="Fetch it again.", param="model"
        )

    def _broken(self, fault: str) -> ModelError:
        return ModelError(f"{self.name} {fault}; it is damaged.", hint="Fetch it again.", param="model")

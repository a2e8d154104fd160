"""The keys and values of passages, each read alone, for prompts that hold them anywhere.

A passage is known by a digest of its tokens, of those that it was read behind, and of the salt (model, dtype, owner):
another text, model or precision is another passage. What is kept is always that of the passage read alone, so that an
answer depends on no question that came before.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import accumulate
from pathlib import Path

import numpy as np
import structlog
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from service.engine.kv import PASSAGES, files
from sparse_attn.kv.quant import dequantize, quantize

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class PassageKV:
    """Keys and values [L, T, Hkv, D] of a passage's tokens, in host memory.

    Attributes:
        k: turned to the positions ``start`` and on, where they were read.
        scales: float16 [2, L, T, Hkv] of keys and values in int8; None where they are in a floating dtype.
        dtype: in which they are given out.
    """

    k: Tensor
    v: Tensor
    start: int
    dtype: torch.dtype
    scales: Tensor | None = None

    @classmethod
    def of(cls, k: Tensor, v: Tensor, start: int, int8: bool) -> PassageKV:
        """Of k and v in a floating dtype, on any device."""
        if not int8:
            return cls(k.cpu(), v.cpu(), start, k.dtype)
        (k_codes, k_scale), (v_codes, v_scale) = quantize(k), quantize(v)
        return cls(k_codes.cpu(), v_codes.cpu(), start, k.dtype, torch.stack([k_scale, v_scale]).cpu())

    @property
    def num_tokens(self) -> int:
        return self.k.shape[1]

    @property
    def num_bytes(self) -> int:
        return sum(part.nbytes for part in (self.k, self.v, self.scales) if part is not None)

    def part(self, tokens: range, device: torch.device) -> tuple[Tensor, Tensor]:
        """k and v [L, n, Hkv, D] of some tokens, by their numbers."""
        at = slice(tokens.start, tokens.stop)
        k, v = (part[:, at].to(device) for part in (self.k, self.v))
        if self.scales is None:
            return k, v
        k_scale, v_scale = self.scales[:, :, at].to(device)
        return dequantize(k, k_scale, self.dtype), dequantize(v, v_scale, self.dtype)

    def values(self, layer: int) -> Tensor:
        """Those of one layer [T, Hkv, D]."""
        if self.scales is None:
            return self.v[layer]
        return dequantize(self.v[layer], self.scales[1, layer], self.dtype)


class PassageFiles:
    """Passages of warmed documents in a folder, some dozens a file.

    A file holds the passages one after another in tensors [L, T, Hkv, D] (`PassageKV`), in its metadata what each is
    known by and how long it is. Their hash is checked once, when the first passage of the file is wanted.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._where: dict[bytes, Path] = {}
        self._checked: set[Path] = set()
        for path in sorted(folder.glob(f"*{PASSAGES}")):
            self._index(path)

    def __len__(self) -> int:
        return len(self._where)

    def load(self, key: bytes) -> PassageKV | None:
        """A passage; None where there is none, or none that is as it was written."""
        path = self._where.get(key)
        if path is None:
            return None
        try:
            if path not in self._checked:
                files.check(path)
                self._checked.add(path)
            with safe_open(path, framework="pt") as file:
                held = _held(file.metadata())
                if key not in held:  # written anew at this moment
                    return None
                span, start, dtype = held[key]
                k, v = (file.get_slice(name)[:, span.start : span.stop].contiguous() for name in "kv")
                coded = "scales" in file.keys()  # noqa: SIM118
                scales = file.get_slice("scales")[:, :, span.start : span.stop].contiguous() if coded else None
        except (*_DAMAGED, RuntimeError) as error:
            log.warning("kept passages cannot be used; warm the document again", file=path.name, error=str(error))
            self._forget(path)
            return None
        return PassageKV(k, v, start, dtype, scales)

    def write(self, name: str, passages: Mapping[bytes, PassageKV]) -> Path:
        """Keep passages, of one precision, under a name, all or nothing; returns the file."""
        each = list(passages.values())
        content = {"k": torch.cat([one.k for one in each], 1), "v": torch.cat([one.v for one in each], 1)}
        scales = [one.scales for one in each if one.scales is not None]
        if scales:
            content["scales"] = torch.cat(scales, 2)
        about = {
            "keys": [key.hex() for key in passages],
            "lengths": [one.num_tokens for one in each],
            "starts": [one.start for one in each],
            "dtype": str(each[0].dtype).removeprefix("torch."),
        }
        path = self._folder / f"{name}{PASSAGES}"
        files.write(path, content, {"passages": json.dumps(about)})
        self._index(path)
        return path

    def _forget(self, path: Path) -> None:
        self._where = {key: other for key, other in self._where.items() if other != path}

    def _index(self, path: Path) -> None:
        self._forget(path)  # what a file of that name held before
        self._checked.discard(path)
        try:
            self._where |= dict.fromkeys(_held(files.read_about(path)), path)
        except _DAMAGED as error:
            log.warning("not a file of passages; warm the document again", file=path.name, error=str(error))


_DAMAGED = (OSError, SafetensorError, LookupError, ValueError, AttributeError, TypeError)


def _held(about: Mapping[str, str]) -> dict[bytes, tuple[range, int, torch.dtype]]:
    """By its key the tokens of each passage in a file, where it was read, and in which dtype it is given out.

    Raises one of `_DAMAGED`.
    """
    told = json.loads(about["passages"])
    dtype = getattr(torch, told["dtype"])
    found = {}
    for key, length, end, start in zip(
        told["keys"], told["lengths"], accumulate(told["lengths"]), told["starts"], strict=True
    ):
        found[bytes.fromhex(key)] = (range(end - length, end), start, dtype)
    return found


class PassageStore:
    """Passages in host memory, least recently used out first; those of warmed documents come back from disk.

    Attributes:
        int8: they are kept in codes of eight bits, at half the bytes of 16 bits or a quarter of float32.
        on_disk: None where there is no folder.
        queries, hits: tokens that were looked for, and found.
        restored: passages that came from disk. evictions: passages that gave way to others.
    """

    def __init__(self, max_bytes: int, int8: bool = False, on_disk: PassageFiles | None = None) -> None:
        """max_bytes: of all passages in host memory together; 0 keeps none."""
        self.max_bytes = max_bytes
        self.int8 = int8
        self.on_disk = on_disk
        self.num_bytes = 0
        self.queries = self.hits = self.restored = self.evictions = 0
        self._passages: OrderedDict[bytes, PassageKV] = OrderedDict()

    def __len__(self) -> int:
        return len(self._passages)

    def __iter__(self) -> Iterator[PassageKV]:
        return iter(self._passages.values())

    def find(self, key: bytes, num_tokens: int) -> PassageKV | None:
        """A passage of so many tokens, if it is there."""
        self.queries += num_tokens
        kept = self._passages.get(key)
        if kept is not None:
            self._passages.move_to_end(key)
        elif self.on_disk is not None:
            kept = self.on_disk.load(key)
            if kept is not None:
                self.restored += 1
                self.keep(key, kept)
        self.hits += num_tokens if kept is not None else 0
        return kept

    def keep(self, key: bytes, kept: PassageKV) -> None:
        """Keep a passage; one that is larger than the whole budget is not kept."""
        if kept.num_bytes > self.max_bytes or key in self._passages:
            return
        self._passages[key] = kept
        self.num_bytes += kept.num_bytes
        while self.num_bytes > self.max_bytes:
            _, oldest = self._passages.popitem(last=False)
            self.num_bytes -= oldest.num_bytes
            self.evictions += 1


def passage_key(salt: str, preface: Sequence[int], token_ids: Sequence[int]) -> bytes:
    """By what a passage is known that is read behind a preface."""
    tokens = [np.array(ids, dtype="<i8").tobytes() for ids in (preface, token_ids)]
    head = f"{salt}\n{len(preface)}\n".encode()
    return blake2b(head + tokens[0] + tokens[1], digest_size=16).digest()

"""The keys and values of passages, each read alone, for prompts that hold them anywhere.

A passage is known by a digest of its tokens, of those that it was read behind, and of the salt (model, dtype, owner):
another text, model or precision is another passage. What is kept is always that of the passage read alone, so that an
answer depends on no question that came before.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
import torch
from torch import Tensor

from sparse_attn.kv.quant import dequantize, quantize


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

    def behind(self, first: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """k and v [L, T - first, Hkv, D] of the tokens from number ``first`` on."""
        k, v = (part[:, first:].to(device) for part in (self.k, self.v))
        if self.scales is None:
            return k, v
        k_scale, v_scale = self.scales[:, :, first:].to(device)
        return dequantize(k, k_scale, self.dtype), dequantize(v, v_scale, self.dtype)


class PassageStore:
    """Passages in host memory, least recently used out first.

    Attributes:
        int8: they are kept in codes of eight bits, at half the bytes of 16 bits or a quarter of float32.
        queries, hits: tokens that were looked for, and found.
        evictions: passages that gave way to others.
    """

    def __init__(self, max_bytes: int, int8: bool = False) -> None:
        """max_bytes: of all passages together; 0 keeps none."""
        self.max_bytes = max_bytes
        self.int8 = int8
        self.num_bytes = 0
        self.queries = self.hits = self.evictions = 0
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
            self.hits += num_tokens
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

"""What an attention kernel is given: where the keys and values of the contexts lie, and what the new rows are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from sparse_attn.blocks import BlockIndex
from sparse_attn.host_values import on_device
from sparse_attn.kv.head_layout import query_heads
from sparse_attn.kv.quant import dequantize

State = tuple[Tensor, Tensor]
"""out [T, Hq, D] in the dtype of q, and lse [T, Hq], natural log-sum-exp of the visible scores."""


@dataclass(slots=True)
class Pages:
    """Where the keys and values of S contexts lie, in one layer and head group.

    Attributes:
        k, v: [num_pages, Hkv, page_size, D], int8 or in a floating dtype.
        block_tables: int32 [S, P]: position ``p`` of context ``s`` lies in page ``block_tables[s, p // page_size]``.
        k_scale, v_scale: float16 [num_pages, Hkv, page_size] of int8 pages (`sparse_attn.kv.quant`); else None.
    """

    k: Tensor
    v: Tensor
    block_tables: Tensor
    k_scale: Tensor | None = None
    v_scale: Tensor | None = None

    @property
    def page_size(self) -> int:
        return self.k.shape[2]

    def gather(self, s: int, length: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """K and V [Hkv, length, D] of the first tokens of a context; ``dtype`` is for int8 pages."""
        pages = self.block_tables[s, : -(-length // self.page_size)].long()
        sides = []
        for tiles, scale in ((self.k, self.k_scale), (self.v, self.v_scale)):
            held = tiles[pages]  # [P, Hkv, page_size, D]
            if scale is not None:
                held = dequantize(held, scale[pages], dtype)
            sides.append(held.transpose(0, 1).flatten(1, 2)[:, :length])
        return sides[0], sides[1]


SKIP_TILE, SKIP_CHUNK = 64, 1024  # keys whose largest weights are compared; mirrored by attention.cpp
SKIP_MOST = 1.0  # of the largest weight before it: no tile with a larger one is skipped, however short the context


@dataclass(slots=True, eq=False)
class Skip:
    """Skip softmax (BLASST, arXiv 2512.12087): tiles of keys that would hardly count are left out of a row's attention.

    A row's keys, numbered 0, 1, … as it sees them (its context, then the new rows that it sees), lie in tiles of
    `SKIP_TILE` and chunks of `SKIP_CHUNK`. A tile is left out where its largest weight is less than ``share`` ÷ n of
    the largest before it, n being the number of the row's keys; `SKIP_MOST` of it at most. "Before it" are the tiles
    before it in its own chunk, and the first of all, where the sink is: so that chunks need not wait for one another,
    and what a row skips depends on its query and its keys alone. All that is left out then weighs less than ``share``
    times the largest weight that is not.

    Attributes:
        share: 0 leaves out nothing: dense attention, on a CPU to the last bit.
        gate: rows of at most so many keys are dense.
        counts: int64 [2], tiles of rows that were looked at, and those of them that were left out; grows.
    """

    share: float
    gate: int
    counts: Tensor

    def margins(self, keys: Tensor) -> Tensor:
        """How far a tile's largest score must lie below the largest before it, for rows of so many keys."""
        least = (self.share / keys.double().clamp(min=1)).clamp(max=SKIP_MOST)
        return torch.where(keys > self.gate, -least.log(), torch.inf)


@dataclass(slots=True)
class Rows:
    """T new rows of S sequences, and how they attend.

    Attributes:
        q: [T, Hq, D]. k, v: [T, Hkv, D], unrepeated. After RoPE.
        cu_seqlens: int32 [S + 1]; the rows of sequence ``s`` are ``cu_seqlens[s]:cu_seqlens[s + 1]``.
        context_lens: int32 [S], tokens in pages, all of which a row may see.
        scale: factor of q·k.
        softcap: scores are cap · tanh(score / cap); 0 for none.
        window: a row at position p sees keys at positions above p - window; 0 for all.
        positions: int64 [T], or None for ``context_len + i`` (no tree).
        tree_masks: per sequence a bool [n, n] ancestor-or-self mask over its rows, or None for causal; the field is
            None where every sequence is causal.
        kept: what kernels prepare once for the rows of a forward; shared by its layers and head groups, whose sequences
            and masks are the same.
        skip: tiles that may be left out, by the kernels of `attention` and of rows in pages; None for none.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    cu_seqlens: Tensor
    context_lens: Tensor
    scale: float
    softcap: float = 0.0
    window: int = 0
    positions: Tensor | None = None
    tree_masks: Sequence[Tensor | None] | None = None
    kept: dict[Any, Any] = field(default_factory=dict)
    skip: Skip | None = None

    @classmethod
    def of_sequence(
        cls,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        scale: float,
        context_len: int = 0,
        *,
        softcap: float = 0.0,
        window: int = 0,
        tree_mask: Tensor | None = None,
    ) -> Rows:
        """The rows of one sequence behind ``context_len`` tokens in pages."""
        bounds, context = (on_device(values, torch.int32, q.device) for values in ([0, len(q)], [context_len]))
        masks = None if tree_mask is None else [tree_mask]
        return cls(q, k, v, bounds, context, scale, softcap, window, tree_masks=masks)

    def take_heads(self, kv_heads: Sequence[int]) -> Rows:
        """The same rows of some KV heads and of the query heads that share them, in this order."""
        own, queries = list(kv_heads), query_heads(kv_heads, self.q.shape[1] // self.k.shape[1])
        return replace(self, q=self.q[:, queries], k=self.k[:, own], v=self.v[:, own])


class PagedAttention(Protocol):
    """A kernel over pages, or over pages and the new rows."""

    def __call__(self, pages: Pages, rows: Rows, index: BlockIndex | None = None) -> State: ...


class RaggedAttention(Protocol):
    """A kernel over the new rows alone."""

    def __call__(self, rows: Rows, index: BlockIndex | None = None) -> State: ...


class InPages(Protocol):
    """Dense attention of new rows whose keys and values lie in pages behind their contexts → out [T, Hq, D]."""

    def __call__(self, pages: Pages, rows: Rows) -> Tensor: ...

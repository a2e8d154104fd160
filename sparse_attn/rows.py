"""What a policy sees of one sequence in one layer: its new queries, and where its keys lie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sparse_attn.blocks import query_blocks
from sparse_attn.kv.quant import dequantize

if TYPE_CHECKING:
    from sparse_attn.kv.pages import PageStats


KEYS_MULTIPLE = 512


@dataclass(frozen=True)
class HeadPages:
    """The context's keys in one head group of a pool (`HeadLayout`); the tensors are those of `SequenceRows`.

    Attributes:
        heads: the KV heads that key_pages holds.
    """

    heads: tuple[int, ...]
    key_pages: Tensor
    block_table: Tensor
    key_scales: Tensor | None = None
    stats: PageStats | None = None

    def gather(self, first: int, end: int, out: Tensor) -> None:
        """Keys of pages first … end-1 of the sequence into the beginning of out[heads], [Hkv, tokens, D]."""
        page_size, head_dim = self.key_pages.shape[2:]
        pages = self.block_table[first:end].long()
        tokens = len(pages) * page_size
        if self.key_scales is not None:
            tiles = dequantize(self.key_pages[pages], self.key_scales[pages], out.dtype)
            out[list(self.heads), :tokens] = tiles.transpose(0, 1).flatten(1, 2)
            return
        for i, head in enumerate(self.heads):  # one head at a time, so that each key is copied once
            target = out[head, :tokens].view(len(pages), page_size, head_dim)
            torch.index_select(self.key_pages[:, i], 0, pages, out=target)


@dataclass(frozen=True)
class SequenceRows:
    """n new rows of one sequence, after RoPE, and the pages that hold its ``context_len`` earlier keys.

    Attributes:
        q: [n, Hq, D]. k: [n, Hkv, D], unrepeated.
        scale: factor of q·k.
        context_len: tokens in pages; row i is token ``context_len + i`` in order of storage.
        key_pages: [num_pages, Hkv, page_size, D] of this layer, or None where there is no context.
        key_scales: float16 [num_pages, Hkv, page_size] where the pages are int8 (see `sparse_attn.kv.quant`).
        block_table: int [P], the sequence's pages in order.
        window: sliding window of the layer in tokens, 0 for none.
        positions: int64 [n] position of each row, or None for ``context_len + i`` (no tree).
        tree_mask: bool [n, n] ancestor-or-self, or None where the rows are a run of text.
        stats: bounds of the keys in each page, for page selection.
        layer: number of the layer, to find its statistics and its state.
        tile_means: where `key_tile_means` keeps its answers between the chunks of a prompt, by (layer, stride).
        groups: where the KV heads lie in pages of several groups; key_pages, key_scales, block_table and stats are
            None then.
    """

    q: Tensor
    k: Tensor
    scale: float
    context_len: int = 0
    key_pages: Tensor | None = None
    block_table: Tensor | None = None
    window: int = 0
    positions: Tensor | None = None
    tree_mask: Tensor | None = None
    stats: PageStats | None = None
    layer: int = 0
    key_scales: Tensor | None = None
    tile_means: dict[tuple[int, int], Tensor] | None = None
    groups: tuple[HeadPages, ...] = ()

    @property
    def num_rows(self) -> int:
        return self.q.shape[0]

    @property
    def length(self) -> int:
        """Tokens of the sequence with the new rows."""
        return self.context_len + self.num_rows

    @property
    def keys(self) -> Tensor:
        """[Hkv, length, D]: every key, the context's gathered from its pages."""
        return self.padded_keys[:, : self.length]

    @cached_property
    def padded_keys(self) -> Tensor:
        """`keys` with zeros behind, up to a multiple of KEYS_MULTIPLE keys."""
        num_heads, head_dim = self.k.shape[1:]
        room = -(-self.length // KEYS_MULTIPLE) * KEYS_MULTIPLE
        keys = self.k.new_empty(num_heads, room, head_dim)
        if self.context_len:
            self._gather_context(keys)
        keys[:, self.context_len : self.length] = self.k.transpose(0, 1)
        keys[:, self.length :] = 0
        return keys

    def key_tile_means(self, stride: int) -> Tensor:
        """[Hkv, ceil(length / stride), D]: mean of every ``stride`` keys; the last of what there is."""
        complete = self.length // stride
        known = self.tile_means.get((self.layer, stride)) if self.tile_means is not None else None
        if known is None or known.shape[1] < complete:
            have = 0 if known is None else known.shape[1]
            fresh = self._key_range(have * stride, complete * stride).unflatten(1, (-1, stride)).mean(2)
            known = fresh if known is None else torch.cat([known, fresh], dim=1)
            if self.tile_means is not None:
                self.tile_means[self.layer, stride] = known
        known = known[:, :complete]
        if self.length % stride == 0:
            return known
        rest = self._key_range(complete * stride, self.length).mean(1, keepdim=True)
        return torch.cat([known, rest], dim=1)

    def _key_range(self, first: int, end: int) -> Tensor:
        """[Hkv, end - first, D]."""
        new = self.k[max(first - self.context_len, 0) : max(end - self.context_len, 0)].transpose(0, 1)
        if first >= self.context_len:
            return new
        page_size = self.head_pages[0].key_pages.shape[2]
        old = self._gather_pages(first // page_size, -(-min(end, self.context_len) // page_size))
        skip = first % page_size
        return torch.cat([old[:, skip : skip + min(end, self.context_len) - first], new], dim=1)

    def page_bounds(self, row: int, num_pages: int) -> Tensor | None:
        """Upper bounds float32 [1, Hq, num_pages] of q·k over the sequence's first pages; None without statistics.

        Query heads whose group keeps no statistics have -inf.
        """
        q, num_kv_heads = self.q[row : row + 1], self.k.shape[1]
        ranked = [(own, own.stats) for own in self.head_pages if own.stats is not None]
        if not ranked:
            return None
        if len(ranked[0][0].heads) == num_kv_heads:
            own, stats = ranked[0]
            return stats.bounds(self.layer, q, own.block_table[:num_pages])
        bounds = q.new_full((*q.shape[:2], num_pages), -torch.inf, dtype=torch.float32)
        for own, stats in ranked:
            heads = query_heads(own.heads, q.shape[1] // num_kv_heads)
            if heads:
                bounds[:, heads] = stats.bounds(self.layer, q[:, heads], own.block_table[:num_pages])
        return bounds

    @property
    def head_pages(self) -> tuple[HeadPages, ...]:
        """The context's keys by head group; there must be a context."""
        if self.groups:
            return self.groups
        assert self.key_pages is not None
        assert self.block_table is not None
        every = tuple(range(self.k.shape[1]))
        return (HeadPages(every, self.key_pages, self.block_table, self.key_scales, self.stats),)

    def _gather_context(self, keys: Tensor) -> None:
        """Fill the first keys from pages; what the last page holds beyond the context is overwritten later."""
        page_size = self.head_pages[0].key_pages.shape[2]
        self._gather_pages(0, -(-self.context_len // page_size), keys)

    def _gather_pages(self, first: int, end: int, out: Tensor | None = None) -> Tensor:
        """Keys of pages first … end-1 of the sequence as [Hkv, tokens, D]; into the beginning of ``out`` if given."""
        if out is None:
            page_size = self.head_pages[0].key_pages.shape[2]
            out = self.k.new_empty(self.k.shape[1], (end - first) * page_size, self.k.shape[2])
        for own in self.head_pages:
            own.gather(first, end, out)
        return out

    @cached_property
    def row_positions(self) -> Tensor:
        """int64 [n]: position of each row."""
        if self.positions is not None:
            return self.positions
        return torch.arange(self.context_len, self.length, device=self.q.device)


def query_heads(kv_heads: Sequence[int], group: int) -> list[int]:
    """The query heads that share these KV heads, ``group`` to each."""
    return [h * group + i for h in kv_heads for i in range(group)]


@dataclass(frozen=True)
class Grid:
    """The query blocks of one sequence's new rows against its key blocks.

    Attributes:
        block_q, block_k: rows and keys a block.
        context_len, num_rows: as in `SequenceRows`.
    """

    block_q: int
    block_k: int
    context_len: int
    num_rows: int
    device: torch.device

    @classmethod
    def of(cls, rows: SequenceRows, block_q: int, block_k: int) -> Grid:
        return cls(block_q, block_k, rows.context_len, rows.num_rows, rows.q.device)

    @cached_property
    def last(self) -> Tensor:
        """int64 [N]: position of each query block's last row."""
        return query_blocks([self.num_rows], [self.context_len], self.block_q, self.device)[2]

    @cached_property
    def start(self) -> Tensor:
        """int64 [N]: where each query block begins on the absolute grid, however the prompt is cut."""
        return self.last // self.block_q * self.block_q

    @property
    def num_query_blocks(self) -> int:
        return len(self.last)

    @property
    def num_key_blocks(self) -> int:
        return -(-(self.context_len + self.num_rows) // self.block_k)

    @cached_property
    def key_blocks(self) -> Tensor:
        """int64 [K]: 0 … K-1."""
        return torch.arange(self.num_key_blocks, device=self.device)

    @cached_property
    def causal(self) -> Tensor:
        """bool [N, K]: key blocks that begin at or before the query block's last row."""
        return self.key_blocks <= (self.last // self.block_k)[:, None]

    def keep(self, sink: int, local: int) -> Tensor:
        """bool [N, K]: blocks with one of the first ``sink`` keys, or of the ``local`` keys up to any row."""
        first_local = (self.start - local + 1).clamp(min=0) // self.block_k
        sinks = self.key_blocks * self.block_k < sink
        return self.causal & (sinks | (self.key_blocks >= first_local[:, None]))

"""What a policy sees of one sequence in one layer: its new queries, and where its keys lie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sparse_attn.kv.head_layout import query_heads
from sparse_attn.kv.quant import dequantize

if TYPE_CHECKING:
    from sparse_attn.kv.page_stats import PageStats


KEYS_MULTIPLE = 512


@dataclass(frozen=True)
class HeadPages:
    """The keys of a sequence's context in one head group of a pool (`HeadLayout`).

    Attributes:
        heads: the KV heads that key_pages holds.
        key_pages: [num_pages, heads, page_size, D] of this layer.
        block_table: int [P], the sequence's pages in order.
        key_scales: float16 [num_pages, heads, page_size] where the pages are int8 (see `sparse_attn.kv.quant`).
        stats: bounds of the keys in each page, for page selection; None where nobody ranks pages.
    """

    heads: Sequence[int]
    key_pages: Tensor
    block_table: Tensor
    key_scales: Tensor | None = None
    stats: PageStats | None = None

    @property
    def page_size(self) -> int:
        return self.key_pages.shape[2]

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
        groups: the context's keys, by head groups that have heads in this layer; none where there is no context.
        window: sliding window of the layer in tokens, 0 for none.
        positions: int64 [n] position of each row, or None for ``context_len + i`` (no tree).
        tree_mask: bool [n, n] ancestor-or-self, or None where the rows are a run of text.
        layer: number of the layer, to find its statistics and its state.
        tile_means: where `key_tile_means` keeps its answers between the chunks of a prompt, by (layer, stride).
    """

    q: Tensor
    k: Tensor
    scale: float
    context_len: int = 0
    groups: Sequence[HeadPages] = ()
    window: int = 0
    positions: Tensor | None = None
    tree_mask: Tensor | None = None
    layer: int = 0
    tile_means: dict[tuple[int, int], Tensor] | None = None

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
            # what the last page holds beyond the context is overwritten below
            self._gather_pages(0, -(-self.context_len // self._page_size), keys)
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
        page_size = self._page_size
        old = self._gather_pages(first // page_size, -(-min(end, self.context_len) // page_size))
        skip = first % page_size
        return torch.cat([old[:, skip : skip + min(end, self.context_len) - first], new], dim=1)

    def page_bounds(self, row: int, num_pages: int) -> Tensor | None:
        """Upper bounds float32 [1, Hq, num_pages] of q·k over the sequence's first pages; None without statistics."""
        q, group = self.q[row : row + 1], self.q.shape[1] // self.k.shape[1]
        bounds = q.new_empty(*q.shape[:2], num_pages, dtype=torch.float32)
        for own in self.groups:
            if own.stats is None:
                return None
            pages = own.block_table[:num_pages]
            if len(self.groups) == 1:
                return own.stats.bounds(self.layer, q, pages)
            heads = query_heads(own.heads, group)
            bounds[:, heads] = own.stats.bounds(self.layer, q[:, heads], pages)
        return bounds

    def _gather_pages(self, first: int, end: int, out: Tensor | None = None) -> Tensor:
        """Keys of pages first … end-1 of the sequence as [Hkv, tokens, D]; into the beginning of ``out`` if given."""
        if out is None:
            out = self.k.new_empty(self.k.shape[1], (end - first) * self._page_size, self.k.shape[2])
        for own in self.groups:
            own.gather(first, end, out)
        return out

    @property
    def _page_size(self) -> int:
        return self.groups[0].page_size

    @cached_property
    def row_positions(self) -> Tensor:
        """int64 [n]: position of each row."""
        if self.positions is not None:
            return self.positions
        return torch.arange(self.context_len, self.length, device=self.q.device)

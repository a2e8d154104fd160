"""Attention over pages and over the new rows in plain torch: the reference of every kernel.

Clear before fast, on any device and in any floating dtype (half types are computed in float32).
`attention` is `paged_attention` and `ragged_attention` joined by `merge_states`. All return, like every
kernel of this package,

    out [T, Hq, D] in the dtype of q      lse [T, Hq] natural log-sum-exp of the visible scores

with `out` zero and `lse` -inf in a row that sees no key, so that parts of one attention can be
joined with `merge_states` (FlashAttention-2, arXiv 2307.08691, section 3.1; FlashInfer, 2501.01005).

K and V are never repeated: the Hq / Hkv query heads of a group read the one KV head they share.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

from sparse_attn.blocks import BlockIndex
from sparse_attn.kernels.operands import SKIP_CHUNK, SKIP_TILE, Pages, Rows, Skip, State

ROW_BLOCK = 256  # rows scored at a time: bounds the score matrix, not the numbers


class KeyFilter(Protocol):
    """What attention needs of a `BlockIndex`: which keys the rows of one sequence may see."""

    def mask(self, sequence: int, rows: slice, num_keys: int) -> Tensor:
        """bool [H, rows, num_keys], H being Hkv or Hq; `rows` count from the sequence's first new row."""
        ...


def attention(pages: Pages, rows: Rows, index: BlockIndex | None = None) -> State:
    """Attend from the new rows to their context in pages and to one another.

    `index` covers both parts (`k_offset` 0). Only here tiles are skipped, which needs all keys of a row at once.
    """
    if rows.skip is not None:
        return _skipping_attention(pages, rows, rows.skip, index)
    past_index, new_index = index.split() if index is not None else (None, None)
    new = ragged_attention(rows, new_index)
    if not bool((rows.context_lens > 0).any()):
        return new
    return merge_states(*paged_attention(pages, rows, past_index), *new)


def paged_attention(pages: Pages, rows: Rows, index: KeyFilter | None = None) -> State:
    """Attend from the new rows to the tokens that are already in pages.

    Every row sees the keys 0 … context_len - 1 of its sequence, less those outside the window (j > position - window)
    and those outside the index.
    """
    out, lse = _empty_state(rows.q)
    for s, ((lo, hi), length) in enumerate(zip(_spans(rows), rows.context_lens.tolist(), strict=True)):
        if lo == hi or length == 0:
            continue
        keys, values = pages.gather(s, length, rows.k.dtype)
        key_positions = torch.arange(length + hi - lo, device=rows.q.device)
        row_positions = key_positions[length:] if rows.positions is None else rows.positions[lo:hi]
        for block in _row_blocks(hi - lo):
            visible = _within_window(row_positions[block], key_positions[:length], rows.window)
            mask = visible.expand(1, -1, -1)
            if index is not None:
                mask = mask & index.mask(s, block, length)
            at = slice(lo + block.start, lo + block.stop)
            out[at], lse[at] = _attend(rows.q[at], keys, values, mask, rows.scale, rows.softcap)
    return out, lse


def ragged_attention(rows: Rows, index: KeyFilter | None = None) -> State:
    """Attend from the new rows of each sequence to the new rows of the same sequence.

    Row i sees row j where j <= i, or where its tree mask says so, less those outside the window, which counts in
    positions (default: the row's number), and those outside the index.
    """
    out, lse = _empty_state(rows.q)
    for s, (lo, hi) in enumerate(_spans(rows)):
        if lo == hi:
            continue
        keys, values = rows.k[lo:hi].transpose(0, 1), rows.v[lo:hi].transpose(0, 1)
        order = torch.arange(hi - lo, device=rows.q.device)
        positions = rows.positions[lo:hi] if rows.positions is not None else order
        tree = rows.tree_masks[s] if rows.tree_masks is not None else None
        for block in _row_blocks(hi - lo):
            visible = tree[block].to(rows.q.device) if tree is not None else order[block, None] >= order[None, :]
            mask = (visible & _within_window(positions[block], positions, rows.window)).expand(1, -1, -1)
            if index is not None:
                mask = mask & index.mask(s, block, hi - lo)
            at = slice(lo + block.start, lo + block.stop)
            out[at], lse[at] = _attend(rows.q[at], keys, values, mask, rows.scale, rows.softcap)
    return out, lse


def _skipping_attention(pages: Pages, rows: Rows, skip: Skip, index: BlockIndex | None) -> State:
    """`attention` as `Skip` says."""
    out, lse = _empty_state(rows.q)
    for s, ((lo, hi), length) in enumerate(zip(_spans(rows), rows.context_lens.tolist(), strict=True)):
        if lo == hi:
            continue
        keys, values = (
            torch.cat([past, new[lo:hi].to(past.dtype).transpose(0, 1)], dim=1)
            for past, new in zip(pages.gather(s, length, rows.k.dtype), (rows.k, rows.v), strict=True)
        )
        tree = rows.tree_masks[s] if rows.tree_masks is not None else None
        order = torch.arange(length + hi - lo, device=rows.q.device)
        for block in _row_blocks(hi - lo):
            at = slice(lo + block.start, lo + block.stop)
            new = tree[block].to(order.device) if tree is not None else order[block, None] >= order[None, : hi - lo]
            seen = torch.cat([new.new_ones(len(new), length), new], dim=1)
            number = torch.where(seen, seen.cumsum(-1) - 1, 0)  # as the row counts its keys
            of_row = seen.sum(-1)
            if rows.window > 0:
                seen = seen & (number >= of_row[:, None] - rows.window)
            visible = seen.expand(1, -1, -1)
            if index is not None:
                visible = visible & index.mask(s, block, length + hi - lo)
            sink = (
                tree is None or length >= SKIP_TILE
            )  # the first tile of a tree's rows is common to them, or no measure
            tiles = _Tiles(number, skip.margins(of_row), sink, skip)
            out[at], lse[at] = _attend(rows.q[at], keys, values, visible, rows.scale, rows.softcap, tiles)
    return out, lse


@dataclass
class _Tiles:
    """Which keys of rows lie in which of their tiles, and what may be skipped."""

    number: Tensor
    margins: Tensor
    sink: bool
    skip: Skip

    def mask(self, scores: Tensor) -> Tensor:
        """Scores [..., R, N], less those of tiles that are skipped."""
        tiles = int(self.number.max()) // SKIP_TILE + 1
        tile = (self.number // SKIP_TILE).expand(scores.shape)
        tops = scores.new_full((*scores.shape[:-1], tiles), -torch.inf).scatter_reduce(-1, tile, scores, "amax")
        chunks = torch.nn.functional.pad(tops, (0, -tiles % (per_chunk := SKIP_CHUNK // SKIP_TILE)), value=-torch.inf)
        running = chunks.unflatten(-1, (-1, per_chunk)).cummax(-1).values.flatten(-2)[..., :tiles]
        if self.sink:
            running = torch.maximum(running, tops[..., :1])
        left_out = tops < running - self.margins[:, None].to(tops.dtype)
        seen = tops > -torch.inf
        self.skip.counts += torch.stack([seen.sum(), (seen & left_out).sum()])
        return scores.masked_fill(left_out.gather(-1, tile), -torch.inf)


def merge_states(out_a: Tensor, lse_a: Tensor, out_b: Tensor, lse_b: Tensor) -> State:
    """Join two attentions of the same rows over disjoint keys; out [T, Hq, D], lse [T, Hq]."""
    lse = torch.logaddexp(lse_a, lse_b)
    seen = lse > -torch.inf
    weight_a, weight_b = (torch.where(seen, torch.exp(part - lse), 0.0)[..., None] for part in (lse_a, lse_b))
    out = out_a.to(lse.dtype) * weight_a + out_b.to(lse.dtype) * weight_b
    return out.to(out_a.dtype), lse


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype scores and sums are kept in: the input's own, but at least float32."""
    return dtype if dtype in (torch.float32, torch.float64) else torch.float32


def _attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float, softcap: float, tiles: _Tiles | None = None
) -> State:
    """q [R, Hq, D], k and v [Hkv, N, D], mask bool [1 | Hkv | Hq, R, N] → out [R, Hq, D], lse [R, Hq]."""
    rows, q_heads, dim = q.shape
    kv_heads, num_keys = k.shape[:2]
    group = q_heads // kv_heads
    acc = compute_dtype(q.dtype)
    grouped = q.to(acc).view(rows, kv_heads, group, dim).permute(1, 2, 0, 3)  # [Hkv, G, R, D]
    scores = (grouped @ k.to(acc).transpose(1, 2)[:, None]) * scale
    if softcap > 0:
        scores = softcap * torch.tanh(scores / softcap)
    if mask.shape[0] == kv_heads and group > 1:
        mask = mask[:, None]
    elif mask.shape[0] == q_heads:
        mask = mask.view(kv_heads, group, rows, num_keys)
    scores = scores.masked_fill(~mask, -torch.inf)
    if tiles is not None:
        scores = tiles.mask(scores)
    lse = torch.logsumexp(scores, dim=-1)
    weights = torch.exp(scores - torch.where(lse > -torch.inf, lse, 0.0)[..., None])
    out = (weights @ v.to(acc)[:, None]).permute(2, 0, 1, 3).reshape(rows, q_heads, dim)
    return out.to(q.dtype), lse.permute(2, 0, 1).reshape(rows, q_heads)


def _empty_state(q: Tensor) -> State:
    lse = torch.full(q.shape[:2], -torch.inf, dtype=compute_dtype(q.dtype), device=q.device)
    return torch.zeros_like(q), lse


def _spans(rows: Rows) -> list[tuple[int, int]]:
    """First row and end of each sequence."""
    return list(pairwise(rows.cu_seqlens.tolist()))


def _within_window(row_positions: Tensor, key_positions: Tensor, window: int) -> Tensor:
    """bool [rows, keys]: key j is visible to a row at position p iff j > p - window (all, if window is 0)."""
    if window <= 0:
        shape = len(row_positions), len(key_positions)
        return torch.ones(shape, dtype=torch.bool, device=row_positions.device)
    return key_positions[None, :] > row_positions[:, None] - window


def _row_blocks(rows: int) -> list[slice]:
    return [slice(lo, min(lo + ROW_BLOCK, rows)) for lo in range(0, rows, ROW_BLOCK)]

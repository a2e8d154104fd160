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

from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

from sparse_attn.blocks import BlockIndex
from sparse_attn.kernels.operands import Pages, Rows, State

ROW_BLOCK = 256  # rows scored at a time: bounds the score matrix, not the numbers


class KeyFilter(Protocol):
    """What attention needs of a `BlockIndex`: which keys the rows of one sequence may see."""

    def mask(self, sequence: int, rows: slice, num_keys: int) -> Tensor:
        """bool [H, rows, num_keys], H being Hkv or Hq; `rows` count from the sequence's first new row."""
        ...


def attention(pages: Pages, rows: Rows, index: BlockIndex | None = None) -> State:
    """Attend from the new rows to their context in pages and to one another.

    `index` covers both parts (`k_offset` 0).
    """
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


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float, softcap: float) -> State:
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

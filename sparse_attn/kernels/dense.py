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

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from sparse_attn.blocks import BlockIndex
from sparse_attn.kv.quant import dequantize

Attention = Callable[..., tuple[Tensor, Tensor]]

ROW_BLOCK = 256  # rows scored at a time: bounds the score matrix, not the numbers


class KeyFilter(Protocol):
    """What attention needs of a `BlockIndex`: which keys the rows of one sequence may see."""

    def mask(self, sequence: int, rows: slice, num_keys: int) -> Tensor:
        """bool [H, rows, num_keys], H being Hkv or Hq; `rows` count from the sequence's first new row."""
        ...


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_tables: Tensor,
    context_lens: Tensor,
    cu_seqlens: Tensor,
    *,
    scale: float,
    softcap: float = 0.0,
    window: int = 0,
    positions: Tensor | None = None,
    tree_masks: Sequence[Tensor | None] | None = None,
    index: BlockIndex | None = None,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
    paged: Attention | None = None,
    ragged: Attention | None = None,
) -> tuple[Tensor, Tensor]:
    """Attend from the new rows to their context in pages and to one another.

    The arguments are those of `paged_attention` and `ragged_attention`; `index` covers both parts
    (`k_offset` 0). `paged` and `ragged` are the kernels to join, by default those of this file.
    """
    past_index, new_index = index.split() if index is not None else (None, None)
    common: dict[str, Any] = {"scale": scale, "softcap": softcap, "window": window, "positions": positions}
    new = (ragged or ragged_attention)(q, k, v, cu_seqlens, tree_masks=tree_masks, index=new_index, **common)
    if not bool((context_lens > 0).any()):
        return new
    scales: dict[str, Any] = {"k_scale": k_scale, "v_scale": v_scale} if k_scale is not None else {}
    past = (paged or paged_attention)(
        q, k_cache, v_cache, block_tables, context_lens, cu_seqlens, index=past_index, **common, **scales
    )
    return merge_states(*past, *new)


def paged_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_tables: Tensor,
    context_lens: Tensor,
    cu_seqlens_q: Tensor,
    *,
    scale: float,
    softcap: float = 0.0,
    window: int = 0,
    positions: Tensor | None = None,
    index: KeyFilter | None = None,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Attend from the new rows to the tokens that are already in pages.

    q [T, Hq, D]; k_cache, v_cache [pages, Hkv, page_size, D], int8 with scales float16 [pages, Hkv, page_size]
    or in a floating dtype; block_tables int [S, P]; context_lens int [S]; cu_seqlens_q int [S + 1]. Every row sees
    the keys 0 … context_len - 1 of its sequence, less those the window (j > position - window) or the index leaves
    out. `positions` int [T] defaults to context_len + row.
    """
    out, lse = _empty_state(q)
    starts, lengths = cu_seqlens_q.tolist(), context_lens.tolist()
    page_size = k_cache.shape[2]
    for s, length in enumerate(lengths):
        lo, hi = starts[s], starts[s + 1]
        if lo == hi or length == 0:
            continue
        pages = block_tables[s, : -(-length // page_size)].long()
        keys = _gather_pages(k_cache, pages, length, k_scale, q.dtype)
        values = _gather_pages(v_cache, pages, length, v_scale, q.dtype)
        after_context = torch.arange(length, length + hi - lo, device=q.device)
        row_positions = after_context if positions is None else positions[lo:hi]
        key_positions = torch.arange(length, device=q.device)
        for rows in _row_blocks(hi - lo):
            visible = _within_window(row_positions[rows], key_positions, window)
            mask = visible.expand(1, -1, -1)
            if index is not None:
                mask = mask & index.mask(s, rows, length)
            block = slice(lo + rows.start, lo + rows.stop)
            out[block], lse[block] = _attend(q[block], keys, values, mask, scale, softcap)
    return out, lse


def ragged_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    *,
    scale: float,
    softcap: float = 0.0,
    window: int = 0,
    positions: Tensor | None = None,
    tree_masks: Sequence[Tensor | None] | None = None,
    index: KeyFilter | None = None,
) -> tuple[Tensor, Tensor]:
    """Attend from the new rows of each sequence to the new rows of the same sequence.

    q [T, Hq, D]; k, v [T, Hkv, D]; cu_seqlens int [S + 1]. Row i sees row j where j <= i, or where
    `tree_masks[s]` (bool [n, n], ancestor or self) says so, less those outside the window, which counts
    in `positions` int [T] (default: the row's number), and those outside the index.
    """
    out, lse = _empty_state(q)
    starts = cu_seqlens.tolist()
    for s in range(len(starts) - 1):
        lo, hi = starts[s], starts[s + 1]
        if lo == hi:
            continue
        keys, values = k[lo:hi].transpose(0, 1), v[lo:hi].transpose(0, 1)
        order = torch.arange(hi - lo, device=q.device)
        seq_positions = positions[lo:hi] if positions is not None else order
        tree = tree_masks[s] if tree_masks is not None else None
        for rows in _row_blocks(hi - lo):
            visible = tree[rows].to(q.device) if tree is not None else order[rows, None] >= order[None, :]
            mask = (visible & _within_window(seq_positions[rows], seq_positions, window)).expand(1, -1, -1)
            if index is not None:
                mask = mask & index.mask(s, rows, hi - lo)
            block = slice(lo + rows.start, lo + rows.stop)
            out[block], lse[block] = _attend(q[block], keys, values, mask, scale, softcap)
    return out, lse


def merge_states(out_a: Tensor, lse_a: Tensor, out_b: Tensor, lse_b: Tensor) -> tuple[Tensor, Tensor]:
    """Join two attentions of the same rows over disjoint keys; out [T, Hq, D], lse [T, Hq]."""
    lse = torch.logaddexp(lse_a, lse_b)
    seen = lse > -torch.inf
    weight_a, weight_b = (torch.where(seen, torch.exp(part - lse), 0.0)[..., None] for part in (lse_a, lse_b))
    out = out_a.to(lse.dtype) * weight_a + out_b.to(lse.dtype) * weight_b
    return out.to(out_a.dtype), lse


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype scores and sums are kept in: the input's own, but at least float32."""
    return dtype if dtype in (torch.float32, torch.float64) else torch.float32


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float, softcap: float) -> tuple[Tensor, Tensor]:
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


def _empty_state(q: Tensor) -> tuple[Tensor, Tensor]:
    lse = torch.full(q.shape[:2], -torch.inf, dtype=compute_dtype(q.dtype), device=q.device)
    return torch.zeros_like(q), lse


def _gather_pages(cache: Tensor, pages: Tensor, length: int, scale: Tensor | None, dtype: torch.dtype) -> Tensor:
    """The first `length` tokens of a sequence as [Hkv, length, D]; `dtype` is for int8 pages."""
    tiles = cache[pages]  # [P, Hkv, page_size, D]
    if scale is not None:
        tiles = dequantize(tiles, scale[pages], dtype)
    return tiles.transpose(0, 1).flatten(1, 2)[:, :length]


def _within_window(row_positions: Tensor, key_positions: Tensor, window: int) -> Tensor:
    """bool [rows, keys]: key j is visible to a row at position p iff j > p - window (all, if window is 0)."""
    if window <= 0:
        shape = len(row_positions), len(key_positions)
        return torch.ones(shape, dtype=torch.bool, device=row_positions.device)
    return key_positions[None, :] > row_positions[:, None] - window


def _row_blocks(rows: int) -> list[slice]:
    return [slice(lo, min(lo + ROW_BLOCK, rows)) for lo in range(0, rows, ROW_BLOCK)]

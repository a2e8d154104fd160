"""A Triton kernel that scores blocks by antidiagonal sums, as `sparse_attn.plan.score` does in torch.

It reads pages in place and does not wait for the device.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from sparse_attn.kernels.triton.launch import tuned
from sparse_attn.plan.grid import Grid
from sparse_attn.rows import SequenceRows

_DIAGONAL_CONFIGS = [
    triton.Config({}, num_warps=warps, num_stages=stages) for warps, stages in ((8, 3), (4, 3), (8, 2))
]


@tuned(_DIAGONAL_CONFIGS, key=["HEAD_DIM", "STRIDE", "BLOCK_M", "BLOCK_N"])
@triton.jit(
    do_not_specialize=["begin", "context", "length", "num_tiles", "num_key_blocks"],
    do_not_specialize_on_alignment=["TABLE"],
)
def _antidiagonal_kernel(
    Q, K_NEW, K_PAGES, TABLE, OUT,
    scale, begin, context, length, num_tiles, num_key_blocks,
    stride_qt, stride_qh, stride_kt, stride_kh, stride_page, stride_page_head, kv_group,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, STRIDE: tl.constexpr, PAGE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, PER_BLOCK: tl.constexpr,
):  # fmt: skip
    """BLOCK_M tiles of rows against BLOCK_N tiles of keys: log-sum-exp over the PER_BLOCK tiles of each key block."""
    tiles_m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    tiles_n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    head = tl.program_id(2)
    kv_head = head // kv_group
    offs_d = tl.arange(0, BLOCK_D)
    in_head = offs_d < HEAD_DIM
    scores = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    # Tiles of the future are skipped whole; the diagonal is masked below.
    if tl.program_id(1) * BLOCK_N <= begin // STRIDE + tl.program_id(0) * BLOCK_M + BLOCK_M - 1:
        for t in range(STRIDE):
            position = begin + tiles_m * STRIDE + STRIDE - 1 - t
            row = position - context
            known = (row >= 0) & (position < length)
            q = tl.load(
                Q + row.to(tl.int64)[:, None] * stride_qt + head * stride_qh + offs_d[None, :],
                mask=known[:, None] & in_head[None, :],
                other=0.0,
            )
            key = tiles_n * STRIDE + t
            old = key < context
            frame = tl.load(TABLE + key // PAGE, mask=old, other=0).to(tl.int64)
            k = tl.load(
                K_PAGES
                + (frame * stride_page + kv_head * stride_page_head + key % PAGE * HEAD_DIM)[None, :]
                + offs_d[:, None],
                mask=old[None, :] & in_head[:, None],
                other=0.0,
            )
            new = (key >= context) & (key < length)
            k_new = tl.load(
                K_NEW + ((key - context).to(tl.int64) * stride_kt + kv_head * stride_kh)[None, :] + offs_d[:, None],
                mask=new[None, :] & in_head[:, None],
                other=0.0,
            )
            scores = tl.dot(q, tl.where(old[None, :], k, k_new), acc=scores, input_precision="ieee")
    future = tiles_n[None, :] > begin // STRIDE + tiles_m[:, None]
    scores = tl.where(future, float("-inf"), scores * scale)
    BLOCKS: tl.constexpr = BLOCK_N // PER_BLOCK
    grouped = tl.reshape(scores, [BLOCK_M, BLOCKS, PER_BLOCK])
    top = tl.max(grouped, 2)
    base = tl.where(top == float("-inf"), 0.0, top)
    total = tl.sum(tl.exp2((grouped - base[:, :, None]) * 1.4426950408889634), 2)
    safe = tl.where(total > 0, total, 1.0)
    lse = tl.where(total > 0, base + tl.log2(safe) * 0.6931471805599453, float("-inf"))
    key_block = tl.program_id(1) * BLOCKS + tl.arange(0, BLOCKS)
    to = (head.to(tl.int64) * num_tiles + tiles_m[:, None]) * num_key_blocks + key_block[None, :]
    tl.store(OUT + to, lse, mask=(tiles_m < num_tiles)[:, None] & (key_block < num_key_blocks)[None, :])


def antidiagonal(rows: SequenceRows, grid: Grid, stride: int) -> Tensor:
    """As `sparse_attn.plan.score.antidiagonal` for all heads, reading the context's keys in their pages.

    The keys must lie in one head group, and not in int8 → float32 [Hq, N, K].
    """
    q, k, context_len, length = rows.q, rows.k, rows.context_len, rows.length
    block_q, block_k = grid.block_q, grid.block_k
    num_heads, head_dim = q.shape[1:]
    begin = context_len // block_q * block_q
    num_blocks, num_key_blocks = grid.num_query_blocks, grid.num_key_blocks
    per_row_block, per_key_block = block_q // stride, block_k // stride
    num_tiles = num_blocks * per_row_block
    out = q.new_full((num_heads, num_tiles, num_key_blocks), -torch.inf, dtype=torch.float32)
    block_m, block_n = 64, max(64, per_key_block)
    if rows.groups:
        [held] = rows.groups
        key_pages, block_table = held.key_pages, held.block_table
    else:
        key_pages, block_table = k[None].transpose(1, 2), torch.zeros(1, dtype=torch.int32, device=q.device)
    programs = (triton.cdiv(num_tiles, block_m), triton.cdiv(num_key_blocks * per_key_block, block_n), num_heads)
    _antidiagonal_kernel[programs](
        *(q, k, key_pages, block_table, out),
        *(rows.scale / stride, begin, context_len, length, num_tiles, num_key_blocks),
        *(q.stride(0), q.stride(1), k.stride(0), k.stride(1), key_pages.stride(0), key_pages.stride(1)),
        num_heads // k.shape[1],
        HEAD_DIM=head_dim,
        BLOCK_D=max(16, triton.next_power_of_2(head_dim)),
        STRIDE=stride,
        PAGE=key_pages.shape[2],
        BLOCK_M=block_m,
        BLOCK_N=block_n,
        PER_BLOCK=per_key_block,
    )
    weights = torch.softmax(out, dim=-1)
    tile_start = begin + torch.arange(num_tiles, device=q.device) * stride
    present = (tile_start + stride > context_len) & (tile_start < length)
    weights = weights.masked_fill(~present[:, None], 0.0).unflatten(1, (num_blocks, per_row_block)).sum(2)
    return weights / present.unflatten(0, (num_blocks, per_row_block)).sum(-1)[:, None]

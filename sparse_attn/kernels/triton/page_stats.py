"""Triton kernels for the bounds of the keys in pages: kept as pages fill, and taken of q·k.

They compute what `sparse_attn.kv.page_stats` computes in torch, reading pages in place, for a whole batch at a time and
without waiting for the device.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from sparse_attn.kernels.triton.launch import tuned
from sparse_attn.kv.quant import HALF_STEP


@triton.jit(do_not_specialize=["num_rows"])
def _page_stats_kernel(
    K, K_SCALE, KMIN, KMAX, SLOTS, num_rows, stride_page, stride_head, stride_bounds, half_step,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, LOGICAL: tl.constexpr, PARTS: tl.constexpr, QUANT: tl.constexpr,
):  # fmt: skip
    """One written token and KV head: the last token written to a logical page recomputes the page's bounds."""
    row = tl.program_id(0)
    head = tl.program_id(1)
    slot = tl.load(SLOTS + row)
    following = tl.load(SLOTS + row + 1, mask=row + 1 < num_rows, other=-1)
    if (slot >= 0) & ((following < 0) | (following // LOGICAL != slot // LOGICAL)):
        tile = slot // LOGICAL
        page = tile // PARTS
        part = tile % PARTS
        offs_n = tl.arange(0, LOGICAL)
        offs_d = tl.arange(0, BLOCK_D)
        in_head = offs_d < HEAD_DIM
        present = (offs_n <= slot % LOGICAL)[:, None] & in_head[None, :]
        base = page * stride_page + head * stride_head + part * LOGICAL * HEAD_DIM
        keys = tl.load(K + base + offs_n[:, None] * HEAD_DIM + offs_d[None, :], mask=present, other=0.0)
        keys = keys.to(tl.float32)
        below, above = keys, keys
        if QUANT:
            scales = tl.load(K_SCALE + base // HEAD_DIM + offs_n, mask=offs_n <= slot % LOGICAL, other=0.0).to(
                tl.float32
            )
            below = (keys - half_step) * scales[:, None]
            above = (keys + half_step) * scales[:, None]
        low = tl.min(tl.where(present, below, float("inf")), 0)
        high = tl.max(tl.where(present, above, float("-inf")), 0)
        to = page * stride_bounds + (head * PARTS + part) * HEAD_DIM + offs_d
        tl.store(KMIN + to, low, mask=in_head)
        tl.store(KMAX + to, high, mask=in_head)


def update_page_stats(
    kmin: Tensor, kmax: Tensor, key_pages: Tensor, slots: Tensor, key_scales: Tensor | None = None
) -> None:
    """As `PageStats.update` for one layer: kmin, kmax [num_pages, Hkv, parts, D], slots int64 [T] or -1.

    The slots of a sequence must ascend in the order of rows, as slot mappings do.
    """
    _, heads, parts, head_dim = kmin.shape
    if len(slots):
        _page_stats_kernel[(len(slots), heads)](
            key_pages,
            key_scales,
            kmin,
            kmax,
            slots,
            len(slots),
            key_pages.stride(0),
            key_pages.stride(1),
            kmin.stride(0),
            HALF_STEP,
            HEAD_DIM=head_dim,
            BLOCK_D=triton.next_power_of_2(head_dim),
            LOGICAL=key_pages.shape[2] // parts,
            PARTS=parts,
            QUANT=key_scales is not None,
        )


_BOUND_CONFIGS = [triton.Config({}, num_warps=warps, num_stages=2) for warps in (4, 8)]


@tuned(_BOUND_CONFIGS, key=["HEAD_DIM", "PAGES", "GROUP"])
@triton.jit(do_not_specialize=["stride_table", "width"], do_not_specialize_on_alignment=["TABLES", "NUM_PAGES"])
def _bounds_kernel(
    Q, KMIN, KMAX, TABLES, NUM_PAGES, OUT, stride_qt, stride_qh, stride_table, stride_bounds, width,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, GROUP: tl.constexpr, BLOCK_G: tl.constexpr,
    PAGES: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """One row, one KV head's group of queries, PAGES pages: the largest bound over each page's logical pages."""
    row = tl.program_id(0)
    head = tl.program_id(1)
    first = tl.program_id(2) * PAGES
    count = tl.load(NUM_PAGES + row)
    offs_g = tl.arange(0, BLOCK_G)
    offs_d = tl.arange(0, BLOCK_D)
    offs_p = tl.arange(0, PAGES)
    in_head = offs_d < HEAD_DIM
    heads = tl.num_programs(1)
    to = (row.to(tl.int64) * heads * GROUP + head * GROUP + offs_g[:, None]) * width + first + offs_p[None, :]
    best = tl.full([BLOCK_G, PAGES], float("-inf"), tl.float32)
    present = first + offs_p < count
    if first < count:
        q_at = Q + row.to(tl.int64) * stride_qt + (head * GROUP + offs_g[:, None]) * stride_qh + offs_d[None, :]
        q = tl.load(q_at, mask=(offs_g < GROUP)[:, None] & in_head[None, :], other=0.0).to(tl.float32)
        above = tl.maximum(q, 0.0)
        below = tl.minimum(q, 0.0)
        frames = tl.load(TABLES + row.to(tl.int64) * stride_table + first + offs_p, mask=present, other=0)
        for part in range(PARTS):
            base = frames.to(tl.int64) * stride_bounds + (head * PARTS + part) * HEAD_DIM
            at = base[None, :] + offs_d[:, None]
            mask = present[None, :] & in_head[:, None]
            high = tl.load(KMAX + at, mask=mask, other=0.0)
            low = tl.load(KMIN + at, mask=mask, other=0.0)
            bound = tl.dot(above, high, input_precision="ieee") + tl.dot(below, low, input_precision="ieee")
            best = tl.maximum(best, bound)
    if count >= 0:
        best = tl.where(present[None, :], best, float("-inf"))
        tl.store(OUT + to, best, mask=(offs_g < GROUP)[:, None] & (first + offs_p < width)[None, :])


def page_bounds(q: Tensor, kmin: Tensor, kmax: Tensor, block_tables: Tensor, num_pages: Tensor) -> Tensor:
    """Bounds of q·k over pages, each row with a page table of its own.

    q [R, Hq, D]; kmin, kmax [pages, Hkv, parts, D]; block_tables int32 [R, P]; num_pages int32 [R]: candidates are
    a row's first ``num_pages`` pages → float32 [R, Hq, P], -inf beyond; of a row with -1 nothing is said.
    """
    num_rows, num_heads, head_dim = q.shape
    _, kv_heads, parts, _ = kmin.shape
    width, group, pages = block_tables.shape[1], num_heads // kv_heads, 64
    out = q.new_empty(num_rows, num_heads, width, dtype=torch.float32)
    _bounds_kernel[(num_rows, kv_heads, triton.cdiv(width, pages))](
        *(q, kmin, kmax, block_tables, num_pages, out),
        *(q.stride(0), q.stride(1), block_tables.stride(0), kmin.stride(0), width),
        HEAD_DIM=head_dim,
        BLOCK_D=max(16, triton.next_power_of_2(head_dim)),
        GROUP=group,
        BLOCK_G=max(16, triton.next_power_of_2(group)),
        PAGES=pages,
        PARTS=parts,
    )
    return out

"""`in_pages` whose bits in a row depend on that row's query and keys alone: on no chunk, draft or sequence beside it.

The same tile, the same shares of a sequence's keys and one binary serve every forward (`sparse_attn.kernels.fixed_work`
says how it is cut). Multiplications and additions are not fused, as the compiler may do that in one loop and not in
the other. A page that a row does not see changes nothing in it: the weights are zero and the largest score stays.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from sparse_attn.kernels.fixed_work import MOST_OF_TREE, FixedTiling
from sparse_attn.kernels.operands import Pages, Rows
from sparse_attn.kernels.triton.in_pages import of_a_page, oldest_page, opened, packed_trees, planned
from sparse_attn.kernels.triton.online_softmax import absorb
from sparse_attn.kernels.work import FIELDS

EXACTLY = {"num_warps": 8, "num_stages": 3, "enable_fp_fusion": False}
"""Of every launch: nothing is tuned, as two configurations may sum in two orders. With four warps two sums of 64 rows
would not fit their registers."""


@triton.jit
def _merge(out, weight, top, part, part_weight, part_top):
    """One more part of rows [M, D] behind those before it; each has its weight and the score that this refers to."""
    higher = tl.maximum(top, part_top)
    base = tl.where(higher == float("-inf"), 0.0, higher)
    before = tl.exp2(top - base)
    own = tl.exp2(part_top - base)
    return out * before[:, None] + part * own[:, None], weight * before + part_weight * own, higher


@triton.jit(do_not_specialize=["stride_table", "stride_qt"], do_not_specialize_on_alignment=["POSITIONS", "TABLES"])
def _invariant_kernel(
    Q, K, V, K_SCALE, V_SCALE, OUT, PART_OUT, PART_WEIGHT, PART_TOP, ITEMS, POSITIONS, TABLES, TREES,
    qk_scale, softcap, window,
    stride_qt, stride_qh, stride_page, stride_kv_head, stride_table, num_heads, kv_group,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, PAGE: tl.constexpr, BLOCK_M: tl.constexpr, GROUP: tl.constexpr,
    FIELDS: tl.constexpr, SHARE: tl.constexpr, NODES: tl.constexpr, WINDOW: tl.constexpr, CAP: tl.constexpr,
    QUANT: tl.constexpr,
):  # fmt: skip
    """The rows of one item, of GROUP heads, over its shares."""
    item, _, _, seq, last_page, first_share, shares, context, local0, length, head0, row, head, wanted, q = opened(
        ITEMS, Q, stride_qt, stride_qh, FIELDS, BLOCK_M, GROUP, HEAD_DIM, BLOCK_D
    )
    part_at = tl.load(item + 6)
    tree = tl.load(item + 10)
    offs_m = tl.arange(0, BLOCK_M)
    offs_n = tl.arange(0, PAGE)
    offs_d = tl.arange(0, BLOCK_D)
    in_head = offs_d < HEAD_DIM

    # the keys of a node are numbered along its path: which of the new ones is the n-th
    nodes = tl.arange(0, NODES)
    in_tree = (nodes < length) & (tree + 0 * nodes >= 0)
    of_path = tl.load(TREES + tree + local0 * length + nodes, mask=in_tree, other=0) != 0
    number = tl.cumsum(of_path.to(tl.int32), 0) - 1
    sees = context + local0 + offs_m // GROUP + 1
    there = context + length
    clear = (context + local0 + 1) // PAGE  # pages that all rows see whole, where they lie
    if tree >= 0:
        there = context + tl.sum(of_path.to(tl.int32), 0)
        sees = there + 0 * offs_m
        clear = context // PAGE
    first_page = 0
    if WINDOW:
        position, first_page = oldest_page(POSITIONS, row, wanted, window, PAGE)

    kv_offset = (head0 // kv_group) * stride_kv_head
    table = TABLES + seq.to(tl.int64) * stride_table
    k_at, v_at, k_scale, v_scale = of_a_page(PAGE, HEAD_DIM, BLOCK_D)
    out = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    weight = tl.zeros([BLOCK_M], tl.float32)
    top = tl.full([BLOCK_M], float("-inf"), tl.float32)
    for share in range(first_share, first_share + shares):
        begin = tl.maximum(share * SHARE, first_page)
        end = tl.minimum((share + 1) * SHARE, last_page)
        middle = tl.maximum(tl.minimum(end, clear), begin)
        if WINDOW:
            middle = begin
        m = tl.full([BLOCK_M], float("-inf"), tl.float32)
        total = tl.zeros([BLOCK_M], tl.float32)
        acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
        frame = tl.load(table + begin, mask=begin < middle, other=0).to(tl.int64)
        for page in range(begin, middle):
            tile = frame * stride_page + kv_offset
            frame = tl.load(table + page + 1, mask=page + 1 < middle, other=0).to(tl.int64)
            k = tl.load(K + tile + k_at, mask=in_head[:, None], other=0.0)
            v = tl.load(V + tile + v_at, mask=in_head[None, :], other=0.0)
            if QUANT:
                k_scale = tl.load(K_SCALE + tile // HEAD_DIM + offs_n).to(tl.float32)
                v_scale = tl.load(V_SCALE + tile // HEAD_DIM + offs_n).to(tl.float32)
            acc, m, total = absorb(
                q, k, v, k_scale, v_scale, acc, m, total, qk_scale, softcap, CAP, QUANT, wanted, False
            )
        for page in range(middle, end):
            key = page * PAGE + offs_n
            new = key - context
            at = key
            if tree >= 0:
                same = of_path[None, :] & (number[None, :] == new[:, None])
                at = tl.where(new >= 0, context + tl.sum(tl.where(same, nodes[None, :], 0), 1), key)
            present = key < there
            slot = tl.load(table + at // PAGE, mask=present, other=0).to(tl.int64) * stride_page + kv_offset
            slot += at % PAGE * HEAD_DIM
            k = tl.load(K + slot[None, :] + offs_d[:, None], mask=present[None, :] & in_head[:, None], other=0.0)
            v = tl.load(V + slot[:, None] + offs_d[None, :], mask=present[:, None] & in_head[None, :], other=0.0)
            if QUANT:
                k_scale = tl.load(K_SCALE + slot // HEAD_DIM, mask=present, other=0.0).to(tl.float32)
                v_scale = tl.load(V_SCALE + slot // HEAD_DIM, mask=present, other=0.0).to(tl.float32)
            visible = (key[None, :] < sees[:, None]) & wanted[:, None]
            if WINDOW:
                visible = visible & (key[None, :] > position[:, None] - window)
            acc, m, total = absorb(
                q, k, v, k_scale, v_scale, acc, m, total, qk_scale, softcap, CAP, QUANT, visible, True
            )
        safe = tl.where(total > 0, total, 1.0)
        lse = tl.where(total > 0, m + tl.log2(safe), float("-inf"))
        out, weight, top = _merge(out, weight, top, acc / safe[:, None], tl.where(total > 0, 1.0, 0.0), lse)

    if part_at >= 0:
        at = (part_at + offs_m // GROUP).to(tl.int64) * num_heads + head
        tl.store(PART_OUT + at[:, None] * HEAD_DIM + offs_d[None, :], out, mask=wanted[:, None] & in_head[None, :])
        tl.store(PART_WEIGHT + at, weight, mask=wanted)
        tl.store(PART_TOP + at, top, mask=wanted)
    else:
        out = out / tl.where(weight > 0, weight, 1.0)[:, None]
        to = (row.to(tl.int64) * num_heads + head) * HEAD_DIM
        mask = wanted[:, None] & in_head[None, :]
        tl.store(OUT + to[:, None] + offs_d[None, :], out.to(OUT.dtype.element_ty), mask=mask)


@triton.jit
def _merge_kernel(
    PART_OUT, PART_WEIGHT, PART_TOP, OUT, JOINS, num_heads, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """The parts of one row and head in their order; a row of no part is nobody's and becomes zero."""
    row = tl.program_id(0)
    head = tl.program_id(1)
    first = tl.load(JOINS + row * 3)
    step = tl.load(JOINS + row * 3 + 1)
    count = tl.load(JOINS + row * 3 + 2)
    if count != 1:
        offs_d = tl.arange(0, BLOCK_D)
        in_head = offs_d < HEAD_DIM
        one = tl.arange(0, 1)
        out = tl.zeros([1, BLOCK_D], tl.float32)
        weight = tl.zeros([1], tl.float32)
        top = tl.full([1], float("-inf"), tl.float32)
        for i in range(count):
            at = (first + i * step + one).to(tl.int64) * num_heads + head
            part = tl.load(PART_OUT + at[:, None] * HEAD_DIM + offs_d[None, :], mask=in_head[None, :], other=0.0)
            out, weight, top = _merge(out, weight, top, part, tl.load(PART_WEIGHT + at), tl.load(PART_TOP + at))
        out = out / tl.where(weight > 0, weight, 1.0)[:, None]
        to = ((row + one).to(tl.int64) * num_heads + head) * HEAD_DIM
        tl.store(OUT + to[:, None] + offs_d[None, :], out.to(OUT.dtype.element_ty), mask=in_head[None, :])


def in_pages(pages: Pages, rows: Rows) -> Tensor:
    """As `sparse_attn.kernels.triton.in_pages.in_pages`."""
    masks, kv_heads = packed_trees(rows), rows.k.shape[1]
    count, num_heads, dim = rows.q.shape
    launch = planned(rows, masks, lambda: FixedTiling.of_model(num_heads, kv_heads, pages.page_size))
    tiling = launch.tiling
    assert isinstance(tiling, FixedTiling)
    assert masks is None or all(n <= MOST_OF_TREE for _, n in masks.places)
    out = torch.empty_like(rows.q, memory_format=torch.contiguous_format)
    if not len(launch.items):
        return out
    parts = max(1, launch.parts)  # there are always buffers, so that there is one binary
    part_out = rows.q.new_empty(parts, num_heads, dim, dtype=torch.float32)
    part_weight, part_top = (rows.q.new_empty(parts, num_heads, dtype=torch.float32) for _ in range(2))
    constants = {"HEAD_DIM": dim, "BLOCK_D": max(16, triton.next_power_of_2(dim))}
    _invariant_kernel[(len(launch.items), tiling.heads)](
        *(rows.q, pages.k, pages.v, pages.k_scale, pages.v_scale, out, part_out, part_weight, part_top, launch.items),
        *(rows.positions, pages.block_tables),
        masks.flat if masks is not None else rows.q.new_empty(1, dtype=torch.uint8),
        *(float(rows.scale), float(rows.softcap), int(rows.window)),
        *(rows.q.stride(0), rows.q.stride(1), pages.k.stride(0), pages.k.stride(1), pages.block_tables.stride(0)),
        *(num_heads, num_heads // kv_heads),
        PAGE=pages.page_size,
        BLOCK_M=tiling.rows,
        GROUP=tiling.group,
        FIELDS=len(FIELDS),
        SHARE=tiling.share,
        NODES=MOST_OF_TREE,
        WINDOW=rows.window > 0,
        CAP=rows.softcap > 0,
        QUANT=pages.k_scale is not None,
        **constants,
        **EXACTLY,
    )
    if launch.parts:
        _merge_kernel[(count, num_heads)](
            *(part_out, part_weight, part_top, out, launch.joins, num_heads), **constants, **EXACTLY
        )
    return out

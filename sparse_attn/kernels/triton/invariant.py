"""`in_pages` whose bits in a row depend on that row's query and keys alone: on no chunk, draft or sequence beside it.

The same tile, the same shares of a sequence's keys and one binary serve every forward (`sparse_attn.kernels.fixed_work`
says how it is cut). Multiplications and additions are not fused, as the compiler may do that in one loop and not in
the other. A page that a row does not see changes nothing in it: the weights are zero and the largest score stays.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from sparse_attn.kernels.fixed_work import MOST_OF_TREE, FixedTiling
from sparse_attn.kernels.operands import Pages, Rows
from sparse_attn.kernels.triton.in_pages import of_a_page, oldest_page, opened, packed_trees, planned
from sparse_attn.kernels.triton.online_softmax import absorb
from sparse_attn.kernels.work import FIELDS, Launch

EXACTLY = {"num_warps": 8, "num_stages": 3, "enable_fp_fusion": False}
"""Of every launch: nothing is tuned, as two configurations may sum in two orders. With four warps two sums of 64 rows
would not fit their registers."""


@triton.jit
def merge(out, weight, top, part, part_weight, part_top):
    """One more part of rows [M, D] behind those before it; each has its weight and the score that this refers to."""
    higher = tl.maximum(top, part_top)
    base = tl.where(higher == float("-inf"), 0.0, higher)
    before = tl.exp2(top - base)
    own = tl.exp2(part_top - base)
    return out * before[:, None] + part * own[:, None], weight * before + part_weight * own, higher


@triton.jit
def along_path(TREES, tree, context, local0, length, offs_m, GROUP: tl.constexpr, NODES: tl.constexpr):
    """How rows number their keys, a node that is an item by itself those of its path: the new ones on it, their
    numbers, how many keys there are, and how many of them each row sees [M]."""
    nodes = tl.arange(0, NODES)
    in_tree = (nodes < length) & (tree + 0 * nodes >= 0)
    of_path = tl.load(TREES + tree + local0 * length + nodes, mask=in_tree, other=0) != 0
    number = tl.cumsum(of_path.to(tl.int32), 0) - 1
    sees = context + local0 + offs_m // GROUP + 1
    there = context + length
    if tree >= 0:
        there = context + tl.sum(of_path.to(tl.int32), 0)
        sees = there + 0 * offs_m
    return of_path, number, there, sees


@triton.jit
def slots_of(
    table, key, present, tree, context, of_path, number, stride_page, kv_offset,
    PAGE: tl.constexpr, HEAD_DIM: tl.constexpr, NODES: tl.constexpr,
):  # fmt: skip
    """Where the keys of these numbers [N] begin, those of a node along its path."""
    at = key
    if tree >= 0:
        new = key - context
        same = of_path[None, :] & (number[None, :] == new[:, None])
        at = tl.where(new >= 0, context + tl.sum(tl.where(same, tl.arange(0, NODES)[None, :], 0), 1), key)
    slot = tl.load(table + at // PAGE, mask=present, other=0).to(tl.int64) * stride_page + kv_offset
    return slot + at % PAGE * HEAD_DIM


@triton.jit
def store_part(
    OUT, PART_OUT, PART_WEIGHT, PART_TOP, part_at, row, head, num_heads, wanted, out, weight, top,
    GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Rows of an item to their part, or where there is one only to the result."""
    offs_m = tl.arange(0, BLOCK_M)
    offs_d = tl.arange(0, BLOCK_D)
    mask = wanted[:, None] & (offs_d < HEAD_DIM)[None, :]
    if part_at >= 0:
        at = (part_at + offs_m // GROUP).to(tl.int64) * num_heads + head
        tl.store(PART_OUT + at[:, None] * HEAD_DIM + offs_d[None, :], out, mask=mask)
        tl.store(PART_WEIGHT + at, weight, mask=wanted)
        tl.store(PART_TOP + at, top, mask=wanted)
    else:
        out = out / tl.where(weight > 0, weight, 1.0)[:, None]
        to = (row.to(tl.int64) * num_heads + head) * HEAD_DIM
        tl.store(OUT + to[:, None] + offs_d[None, :], out.to(OUT.dtype.element_ty), mask=mask)


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

    of_path, number, there, sees = along_path(TREES, tree, context, local0, length, offs_m, GROUP, NODES)
    clear = (context + local0 + 1) // PAGE  # pages that all rows see whole, where they lie
    if tree >= 0:
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
            present = key < there
            slot = slots_of(
                table, key, present, tree, context, of_path, number, stride_page, kv_offset, PAGE, HEAD_DIM, NODES
            )
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
        out, weight, top = merge(out, weight, top, acc / safe[:, None], tl.where(total > 0, 1.0, 0.0), lse)

    store_part(
        OUT, PART_OUT, PART_WEIGHT, PART_TOP, part_at, row, head, num_heads, wanted, out, weight, top,
        GROUP, HEAD_DIM, BLOCK_M, BLOCK_D,
    )  # fmt: skip


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
            out, weight, top = merge(out, weight, top, part, tl.load(PART_WEIGHT + at), tl.load(PART_TOP + at))
        out = out / tl.where(weight > 0, weight, 1.0)[:, None]
        to = ((row + one).to(tl.int64) * num_heads + head) * HEAD_DIM
        tl.store(OUT + to[:, None] + offs_d[None, :], out.to(OUT.dtype.element_ty), mask=in_head[None, :])


@dataclass(frozen=True)
class FixedLaunch:
    """What kernels on a `FixedTiling` are launched with.

    Attributes:
        launch: its items and how their parts are joined.
        out: like q, the result.
        part_out, part_weight, part_top: float32 [P, Hq, D] and [P, Hq]; there are always buffers, so that there is one
            binary.
        trees: all masks flat.
    """

    launch: Launch
    out: Tensor
    part_out: Tensor
    part_weight: Tensor
    part_top: Tensor
    trees: Tensor

    @classmethod
    def of(cls, pages: Pages, rows: Rows) -> FixedLaunch:
        """For rows that lie in pages."""
        masks, kv_heads = packed_trees(rows), rows.k.shape[1]
        _, num_heads, dim = rows.q.shape
        launch = planned(rows, masks, lambda: FixedTiling.of_model(num_heads, kv_heads, pages.page_size))
        assert isinstance(launch.tiling, FixedTiling)
        assert masks is None or all(n <= MOST_OF_TREE for _, n in masks.places)
        parts = max(1, launch.parts)
        return cls(
            launch,
            torch.empty_like(rows.q, memory_format=torch.contiguous_format),
            rows.q.new_empty(parts, num_heads, dim, dtype=torch.float32),
            rows.q.new_empty(parts, num_heads, dtype=torch.float32),
            rows.q.new_empty(parts, num_heads, dtype=torch.float32),
            masks.flat if masks is not None else rows.q.new_empty(1, dtype=torch.uint8),
        )

    @property
    def grid(self) -> tuple[int, int]:
        return len(self.launch.items), self.launch.tiling.heads

    @property
    def into(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.out, self.part_out, self.part_weight, self.part_top

    def constants(self, pages: Pages, rows: Rows) -> dict[str, Any]:
        """Those that such kernels share."""
        tiling = self.launch.tiling
        assert isinstance(tiling, FixedTiling)
        return {
            **_dims(rows),
            "PAGE": pages.page_size,
            "BLOCK_M": tiling.rows,
            "GROUP": tiling.group,
            "FIELDS": len(FIELDS),
            "SHARE": tiling.share,
            "NODES": MOST_OF_TREE,
            "WINDOW": rows.window > 0,
            "CAP": rows.softcap > 0,
            "QUANT": pages.k_scale is not None,
            **EXACTLY,
        }

    def joined(self, rows: Rows) -> Tensor:
        """The result, after the kernel has run."""
        if self.launch.parts:
            count, num_heads, _ = rows.q.shape
            _merge_kernel[(count, num_heads)](
                *(self.part_out, self.part_weight, self.part_top, self.out, self.launch.joins, num_heads),
                **_dims(rows),
                **EXACTLY,
            )
        return self.out


def _dims(rows: Rows) -> dict[str, int]:
    dim = rows.q.shape[2]
    return {"HEAD_DIM": dim, "BLOCK_D": max(16, triton.next_power_of_2(dim))}


def in_pages(pages: Pages, rows: Rows) -> Tensor:
    """As `sparse_attn.kernels.triton.in_pages.in_pages`."""
    fixed = FixedLaunch.of(pages, rows)
    if not fixed.grid[0]:
        return fixed.out
    num_heads = rows.q.shape[1]
    _invariant_kernel[fixed.grid](
        *(rows.q, pages.k, pages.v, pages.k_scale, pages.v_scale, *fixed.into, fixed.launch.items),
        *(rows.positions, pages.block_tables, fixed.trees),
        *(float(rows.scale), float(rows.softcap), int(rows.window)),
        *(rows.q.stride(0), rows.q.stride(1), pages.k.stride(0), pages.k.stride(1), pages.block_tables.stride(0)),
        *(num_heads, num_heads // rows.k.shape[1]),
        **fixed.constants(pages, rows),
    )
    return fixed.joined(rows)

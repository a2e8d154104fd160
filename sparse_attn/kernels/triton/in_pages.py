"""Dense attention of new rows that lie in pages with their contexts, in Triton: decode, draft trees, prompts' chunks.

One launch serves all sequences by a list of items (`sparse_attn.kernels.work`), each a tile of rows over a share of a
sequence's pages. The new keys are in pages already, so a row reads one kind of key; only the pages at a tile's edge are
masked (causal, or by the tree), all before them are read and summed as they are. Rows of several parts are joined by a
second kernel.

A captured graph keeps the shapes and reads other items each time: what there is of a launch lies in `work.Launch`.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
import triton
import triton.language as tl
from torch import Tensor

from sparse_attn.host_values import host_list, to_device
from sparse_attn.kernels.operands import Pages, Rows
from sparse_attn.kernels.triton.launch import tuned
from sparse_attn.kernels.triton.online_softmax import absorb
from sparse_attn.kernels.work import FIELDS, MOST_SHARES, Launch, Tiling
from sparse_attn.tree_masks import TreeMasks

_CONFIGS = [
    triton.Config({}, num_warps=warps, num_stages=stages) for warps, stages in ((4, 3), (8, 3), (4, 4), (8, 4), (4, 5))
]


@triton.jit
def opened(
    ITEMS, Q, stride_qt, stride_qh,
    FIELDS: tl.constexpr, BLOCK_M: tl.constexpr, GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """The program's item and what every program reads of it, its first head, and its rows: number, head, whether it is
    wanted, and query [BLOCK_M, BLOCK_D]."""
    item = ITEMS + tl.program_id(0) * FIELDS
    first_row = tl.load(item)
    count = tl.load(item + 1)
    head0 = tl.program_id(1) * GROUP
    offs_m = tl.arange(0, BLOCK_M)
    offs_d = tl.arange(0, BLOCK_D)
    wanted = offs_m // GROUP < count
    row = first_row + offs_m // GROUP
    head = head0 + offs_m % GROUP
    at = row.to(tl.int64) * stride_qt + head * stride_qh
    q = tl.load(Q + at[:, None] + offs_d[None, :], mask=wanted[:, None] & (offs_d < HEAD_DIM)[None, :], other=0.0)
    seq, pages, share, shares = tl.load(item + 2), tl.load(item + 3), tl.load(item + 4), tl.load(item + 5)
    context, local0, length = tl.load(item + 7), tl.load(item + 8), tl.load(item + 9)
    return item, first_row, count, seq, pages, share, shares, context, local0, length, head0, row, head, wanted, q


@triton.jit
def oldest_page(POSITIONS, row, wanted, window, PAGE: tl.constexpr):
    """The rows' positions, and the first page that any of them sees through its window."""
    position = tl.load(POSITIONS + row, mask=wanted, other=2147483647)
    oldest = tl.min(position, 0).to(tl.int32) - window + 1
    return position, tl.maximum(oldest, 0) // PAGE


@triton.jit
def of_a_page(PAGE: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """Where the keys [BLOCK_D, PAGE] and values [PAGE, BLOCK_D] of a page lie in it, and scales of 1, which the loops
    replace by others of their shape."""
    offs_n = tl.arange(0, PAGE)
    offs_d = tl.arange(0, BLOCK_D)
    ones = tl.full([PAGE], 1.0, tl.float32)
    return offs_n[None, :] * HEAD_DIM + offs_d[:, None], offs_n[:, None] * HEAD_DIM + offs_d[None, :], ones, ones


@tuned(_CONFIGS, key=["HEAD_DIM", "PAGE", "BLOCK_M", "GROUP", "QUANT", "WINDOW", "TREE"])
@triton.jit(do_not_specialize=["stride_table"], do_not_specialize_on_alignment=["POSITIONS", "TABLES"])
def _in_pages_kernel(
    Q, K, V, K_SCALE, V_SCALE, OUT, PART_OUT, PART_LSE, ITEMS, POSITIONS, TABLES, TREES, CONTEXTS,
    qk_scale, softcap, window,
    stride_qt, stride_qh, stride_page, stride_kv_head, stride_table, num_heads, kv_group,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, PAGE: tl.constexpr, BLOCK_M: tl.constexpr, GROUP: tl.constexpr,
    FIELDS: tl.constexpr, SPLIT: tl.constexpr, TREE: tl.constexpr, WINDOW: tl.constexpr, CAP: tl.constexpr,
    QUANT: tl.constexpr, LISTED: tl.constexpr,
):  # fmt: skip
    """The rows of one item, of GROUP heads. What changes with contexts and company is not specialized: nobody may wait
    for a compilation. LISTED: a sequence has a page table and a context for each KV head.
    """
    item, first_row, count, seq, pages, share, shares, context, local0, length, head0, row, head, wanted, q = opened(
        ITEMS, Q, stride_qt, stride_qh, FIELDS, BLOCK_M, GROUP, HEAD_DIM, BLOCK_D
    )
    if LISTED:
        seq = seq * (num_heads // kv_group) + head0 // kv_group
        context = tl.load(CONTEXTS + seq)
        pages = tl.where(count > 0, (context + local0 + count + PAGE - 1) // PAGE, 0)

    offs_m = tl.arange(0, BLOCK_M)
    offs_n = tl.arange(0, PAGE)
    offs_d = tl.arange(0, BLOCK_D)
    in_head = offs_d < HEAD_DIM
    local = local0 + offs_m // GROUP
    tree = -1
    clear = (context + local0 + 1) // PAGE  # pages that all rows see whole
    if TREE:
        tree = tl.load(item + 10)
        clear = tl.where(tree >= 0, context // PAGE, clear)
    first_page = 0
    if WINDOW:
        position, oldest = oldest_page(POSITIONS, row, wanted, window, PAGE)
        first_page = tl.minimum(oldest, pages)
    size = (pages - first_page + shares - 1) // tl.maximum(shares, 1)
    begin = tl.minimum(first_page + share * size, pages)
    end = tl.minimum(begin + size, pages)
    middle = tl.maximum(tl.minimum(end, clear), begin)
    front = begin  # pages from here to the middle are seen whole
    if WINDOW:
        newest = tl.max(tl.where(wanted, position, 0), 0).to(tl.int32) - window + 1
        front = tl.minimum(tl.maximum((newest + PAGE - 1) // PAGE, begin), middle)

    m = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    kv_offset = (head0 // kv_group) * stride_kv_head
    table = TABLES + seq.to(tl.int64) * stride_table
    k_at, v_at, k_scale, v_scale = of_a_page(PAGE, HEAD_DIM, BLOCK_D)
    # the frame comes from the iteration before: a load that another load waits for would take a stage of the pipeline
    frame = tl.load(table + front, mask=front < middle, other=0).to(tl.int64)
    for page in range(front, middle):
        tile = frame * stride_page + kv_offset
        frame = tl.load(table + page + 1, mask=page + 1 < middle, other=0).to(tl.int64)
        if BLOCK_D == HEAD_DIM:
            k = tl.load(K + tile + k_at)
            v = tl.load(V + tile + v_at)
        else:
            k = tl.load(K + tile + k_at, mask=in_head[:, None], other=0.0)
            v = tl.load(V + tile + v_at, mask=in_head[None, :], other=0.0)
        if QUANT:
            k_scale = tl.load(K_SCALE + tile // HEAD_DIM + offs_n).to(tl.float32)
            v_scale = tl.load(V_SCALE + tile // HEAD_DIM + offs_n).to(tl.float32)
        acc, m, total = absorb(q, k, v, k_scale, v_scale, acc, m, total, qk_scale, softcap, CAP, QUANT, wanted, False)

    for step in range(middle - (front - begin), end):  # what is left before and behind
        page = step
        if WINDOW:
            page = tl.where(step < middle, step - middle + front, step)
        tile = tl.load(table + page).to(tl.int64) * stride_page + kv_offset
        key = page * PAGE + offs_n
        new = key - context
        present = new < length
        k = tl.load(K + tile + k_at, mask=present[None, :] & in_head[:, None], other=0.0)
        v = tl.load(V + tile + v_at, mask=present[:, None] & in_head[None, :], other=0.0)
        if QUANT:
            k_scale = tl.load(K_SCALE + tile // HEAD_DIM + offs_n, mask=present, other=0.0).to(tl.float32)
            v_scale = tl.load(V_SCALE + tile // HEAD_DIM + offs_n, mask=present, other=0.0).to(tl.float32)
        visible = present[None, :] & wanted[:, None]
        if TREE:
            drafted = (new >= 0) & (tree + tl.zeros([PAGE], tl.int32) >= 0)
            at = TREES + tree + (local[:, None] * length + new[None, :])
            ancestor = tl.load(at, mask=visible & drafted[None, :], other=0) != 0
            visible = visible & tl.where(drafted[None, :], ancestor, new[None, :] <= local[:, None])
        else:
            visible = visible & (new[None, :] <= local[:, None])
        if WINDOW:
            newer = first_row - local0 + new
            place = tl.load(POSITIONS + newer, mask=present & (new >= 0), other=0).to(tl.int32)
            place = tl.where(new >= 0, place, key)
            visible = visible & (place[None, :] > position[:, None] - window)
        acc, m, total = absorb(q, k, v, k_scale, v_scale, acc, m, total, qk_scale, softcap, CAP, QUANT, visible, True)

    safe = tl.where(total > 0, total, 1.0)
    out = acc / safe[:, None]
    mask = wanted[:, None] & in_head[None, :]
    if SPLIT:
        part = tl.load(item + 6)
        slots = part + offs_m // GROUP
        slot = slots.to(tl.int64) * num_heads + head
        lse = tl.where(total > 0, m + tl.log2(safe), float("-inf"))
        of_part = wanted & (slots >= offs_m // GROUP)
        tl.store(PART_OUT + slot[:, None] * HEAD_DIM + offs_d[None, :], out, mask=of_part[:, None] & in_head[None, :])
        tl.store(PART_LSE + slot, lse, mask=of_part)
        mask = (wanted & (slots < offs_m // GROUP))[:, None] & in_head[None, :]
    to = (row.to(tl.int64) * num_heads + head) * HEAD_DIM
    tl.store(OUT + to[:, None] + offs_d[None, :], out.to(OUT.dtype.element_ty), mask=mask)


@triton.jit
def _join_kernel(
    PART_OUT, PART_LSE, OUT, JOINS, num_heads,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, MOST: tl.constexpr, AT_ONCE: tl.constexpr,
):  # fmt: skip
    """Join the parts of one row and head; a row of no part is nobody's and becomes zero."""
    row = tl.program_id(0)
    head = tl.program_id(1)
    first = tl.load(JOINS + row * 3)
    step = tl.load(JOINS + row * 3 + 1)
    count = tl.load(JOINS + row * 3 + 2)
    if count != 1:
        offs_d = tl.arange(0, BLOCK_D)
        in_head = offs_d < HEAD_DIM
        every = tl.arange(0, MOST)
        slots = (first + every * step).to(tl.int64) * num_heads + head
        top = tl.max(tl.load(PART_LSE + slots, mask=every < count, other=float("-inf")), 0)
        base = tl.where(top == float("-inf"), 0.0, top)
        total = 0.0
        acc = tl.zeros([BLOCK_D], tl.float32)
        for begin in range(0, count, AT_ONCE):
            some = begin + tl.arange(0, AT_ONCE)
            at = (first + some * step).to(tl.int64) * num_heads + head
            weight = tl.exp2(tl.load(PART_LSE + at, mask=some < count, other=float("-inf")) - base)
            part = tl.load(
                PART_OUT + at[:, None] * HEAD_DIM + offs_d[None, :],
                mask=(some < count)[:, None] & in_head[None, :],
                other=0.0,
            )
            total += tl.sum(weight, 0)
            acc += tl.sum(weight[:, None] * part, 0)
        out = acc / tl.where(total > 0, total, 1.0)
        to = (row.to(tl.int64) * num_heads + head) * HEAD_DIM
        tl.store(OUT + to + offs_d, out.to(OUT.dtype.element_ty), mask=in_head)


def packed_trees(rows: Rows) -> TreeMasks | None:
    """The tree masks in one tensor, made once for all layers."""
    if rows.tree_masks is None or isinstance(rows.tree_masks, TreeMasks):
        return rows.tree_masks
    if TreeMasks not in rows.kept:
        rows.kept[TreeMasks] = TreeMasks.pack(rows.tree_masks, rows.q.device)
    masks: TreeMasks | None = rows.kept[TreeMasks]
    return masks


def planned(rows: Rows, masks: TreeMasks | None, tiling: Callable[[], Tiling]) -> Launch:
    """The launch for the rows of a forward, made once for all layers from what the host knows of them."""
    at = (Launch, rows.k.shape[1])
    if at not in rows.kept:
        bounds, own = host_list(rows.cu_seqlens), tiling()
        trees = [place for place, _ in masks.places] if masks is not None else [-1] * (len(bounds) - 1)
        work = own.plan(bounds, host_list(rows.context_lens), trees)
        items, joins = (to_device(torch.from_numpy(part), rows.q.device) for part in (work.items, work.joins))
        rows.kept[at] = Launch(own, items, joins, work.parts)
    launch: Launch = rows.kept[at]
    return launch


def _tiling(rows: Rows, page_size: int) -> Tiling:
    bounds = host_list(rows.cu_seqlens)
    return Tiling.of(
        *(max((end - begin for begin, end in pairwise(bounds)), default=1), rows.q.shape[1], rows.k.shape[1]),
        page_size,
        narrow=rows.q.dtype == torch.float32 or rows.q.shape[2] > 128,
    )


def in_pages(pages: Pages, rows: Rows) -> Tensor:
    """Dense attention of new rows whose keys and values lie in pages behind their contexts: [T, Hq, D] like q.

    Row i of a sequence sees its context and the new rows up to itself, or those that its tree mask names, less what
    lies outside the window. The block tables reach to the last new row.
    """
    masks = packed_trees(rows)
    return attend(pages, rows, masks, planned(rows, masks, lambda: _tiling(rows, pages.page_size)))


def attend(pages: Pages, rows: Rows, masks: TreeMasks | None, launch: Launch, contexts: Tensor | None = None) -> Tensor:
    """As `in_pages`, by a launch that was planned.

    With ``contexts`` int32 [N, Hkv] an item's sequence is one of N lists of pages, block_tables [N * Hkv, P], of which
    each KV head has its own (`sparse_attn.kernels.triton.selection`); layers have no windows then.
    """
    kv_heads = rows.k.shape[1]
    tiling, (count, num_heads, dim) = launch.tiling, rows.q.shape
    out = torch.empty_like(rows.q, memory_format=torch.contiguous_format)
    if not len(launch.items):
        return out
    part_out = part_lse = None
    if launch.parts:
        part_out = rows.q.new_empty(launch.parts, num_heads, dim, dtype=torch.float32)
        part_lse = rows.q.new_empty(launch.parts, num_heads, dtype=torch.float32)
    constants = {"HEAD_DIM": dim, "BLOCK_D": max(16, triton.next_power_of_2(dim))}
    _in_pages_kernel[(len(launch.items), tiling.heads)](
        *(rows.q, pages.k, pages.v, pages.k_scale, pages.v_scale, out, part_out, part_lse, launch.items),
        *(rows.positions, pages.block_tables, masks.flat if masks is not None else None, contexts),
        *(float(rows.scale), float(rows.softcap), int(rows.window)),
        *(rows.q.stride(0), rows.q.stride(1), pages.k.stride(0), pages.k.stride(1), pages.block_tables.stride(0)),
        *(num_heads, num_heads // kv_heads),
        PAGE=pages.page_size,
        BLOCK_M=tiling.rows,
        GROUP=tiling.group,
        FIELDS=len(FIELDS),
        SPLIT=bool(launch.parts),
        TREE=masks is not None,
        WINDOW=rows.window > 0,
        CAP=rows.softcap > 0,
        QUANT=pages.k_scale is not None,
        LISTED=contexts is not None,
        **constants,
    )
    if launch.parts:
        _join_kernel[(count, num_heads)](
            part_out, part_lse, out, launch.joins, num_heads, MOST=MOST_SHARES, AT_ONCE=16, **constants
        )
    return out

"""Attention of rows that lie in pages, less the tiles of keys that `Skip` leaves out (BLASST, arXiv 2512.12087).

Cut as the invariant kernel is (`sparse_attn.kernels.fixed_work`), for what a row leaves out depends on its query and
its keys alone; a share is a number of `SKIP_CHUNK`s, so that no program waits for another. Scores are always computed;
a tile that all rows of a program leave out costs no exponentials, no product with values, and none are read.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import triton
import triton.language as tl
from torch import Tensor

from sparse_attn.host_values import host_list, to_device
from sparse_attn.kernels.operands import SKIP_CHUNK, SKIP_MOST, SKIP_TILE, InPages, Pages, Rows, Skip
from sparse_attn.kernels.triton.in_pages import opened, packed_trees
from sparse_attn.kernels.triton.invariant import FixedLaunch, along_path, merge, slots_of, store_part
from sparse_attn.kernels.triton.online_softmax import scores, weigh


@triton.jit
def _seen_scores(
    q, K, K_SCALE, slot, key, present, sees, wanted, window, qk_scale, softcap,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, WINDOW: tl.constexpr, CAP: tl.constexpr, QUANT: tl.constexpr,
):  # fmt: skip
    """Scores [M, N] of the keys of these slots and numbers [N], -inf where a row does not see one."""
    offs_d = tl.arange(0, BLOCK_D)
    mask = present[None, :] & (offs_d < HEAD_DIM)[:, None]
    k = tl.load(K + slot[None, :] + offs_d[:, None], mask=mask, other=0.0)
    k_scale = 1.0
    if QUANT:
        k_scale = tl.load(K_SCALE + slot // HEAD_DIM, mask=present, other=0.0).to(tl.float32)
    visible = (key[None, :] < sees[:, None]) & wanted[:, None]
    if WINDOW:
        visible = visible & (key[None, :] >= sees[:, None] - window)
    return tl.where(visible, scores(q, k, k_scale, qk_scale, softcap, CAP, QUANT), float("-inf"))


@triton.jit(do_not_specialize=["stride_table", "stride_qt"], do_not_specialize_on_alignment=["TABLES"])
def _skipping_kernel(
    Q, K, V, K_SCALE, V_SCALE, OUT, PART_OUT, PART_WEIGHT, PART_TOP, ITEMS, TABLES, TREES, SEES, COUNTS,
    qk_scale, softcap, window, skip_share, skip_most, skip_gate,
    stride_qt, stride_qh, stride_page, stride_kv_head, stride_table, num_heads, kv_group,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, PAGE: tl.constexpr, BLOCK_M: tl.constexpr, GROUP: tl.constexpr,
    FIELDS: tl.constexpr, SHARE: tl.constexpr, NODES: tl.constexpr, WINDOW: tl.constexpr, CAP: tl.constexpr,
    QUANT: tl.constexpr, TILE: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """The rows of one item, of GROUP heads, over its shares; SEES: how many keys each row has."""
    item, _, _, seq, last_page, first_share, shares, context, local0, length, head0, row, head, wanted, q = opened(
        ITEMS, Q, stride_qt, stride_qh, FIELDS, BLOCK_M, GROUP, HEAD_DIM, BLOCK_D
    )
    part_at = tl.load(item + 6)
    tree = tl.load(item + 10)
    offs_m = tl.arange(0, BLOCK_M)
    offs_n = tl.arange(0, TILE)
    offs_d = tl.arange(0, BLOCK_D)
    in_head = offs_d < HEAD_DIM
    of_path, number, there, _ = along_path(TREES, tree, context, local0, length, offs_m, GROUP, NODES)
    sees = tl.load(SEES + row, mask=wanted, other=1)
    margin = -tl.log2(tl.minimum(skip_share / sees, skip_most))
    margin = tl.where(sees > skip_gate, margin, float("inf"))
    kv_offset = (head0 // kv_group) * stride_kv_head
    table = TABLES + seq.to(tl.int64) * stride_table
    v_scale = tl.full([TILE], 1.0, tl.float32)
    oldest = 0
    if WINDOW:
        oldest = tl.maximum(tl.min(tl.where(wanted, sees, 2147483647), 0) - window, 0) // TILE

    # the largest score of the first tile, where the sink is; that of a tree's rows is common to them, or no measure
    first = tl.full([BLOCK_M], float("-inf"), tl.float32)
    if (tree < 0) | (context >= TILE):
        present = offs_n < there
        slot = slots_of(
            table, offs_n, present, -1, context, of_path, number, stride_page, kv_offset, PAGE, HEAD_DIM, NODES
        )
        s = _seen_scores(
            q, K, K_SCALE, slot, offs_n, present, sees, wanted, window, qk_scale, softcap, HEAD_DIM, BLOCK_D, WINDOW,
            CAP, QUANT,
        )  # fmt: skip
        first = tl.max(s, 1)

    out = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    weight = tl.zeros([BLOCK_M], tl.float32)
    top = tl.full([BLOCK_M], float("-inf"), tl.float32)
    looked_at = tl.zeros([BLOCK_M], tl.int32)
    left_out = tl.zeros([BLOCK_M], tl.int32)
    for share in range(first_share, first_share + shares):
        begin = tl.maximum(share * SHARE * PAGE // TILE, oldest)
        end = (tl.minimum((share + 1) * SHARE, last_page) * PAGE + TILE - 1) // TILE
        m = tl.full([BLOCK_M], float("-inf"), tl.float32)
        total = tl.zeros([BLOCK_M], tl.float32)
        acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
        running = first
        for tile in range(begin, end):
            key = tile * TILE + offs_n
            present = key < there
            slot = slots_of(
                table, key, present, tree, context, of_path, number, stride_page, kv_offset, PAGE, HEAD_DIM, NODES
            )
            s = _seen_scores(
                q, K, K_SCALE, slot, key, present, sees, wanted, window, qk_scale, softcap, HEAD_DIM, BLOCK_D, WINDOW,
                CAP, QUANT,
            )  # fmt: skip
            tops = tl.max(s, 1)
            running = tl.maximum(tl.where(tile % (CHUNK // TILE) == 0, first, running), tops)
            seen = tops > float("-inf")
            kept = seen & (tops >= running - margin)
            looked_at += seen.to(tl.int32)
            left_out += (seen & (tops < running - margin)).to(tl.int32)
            if tl.max(kept.to(tl.int32), 0) > 0:
                v = tl.load(V + slot[:, None] + offs_d[None, :], mask=present[:, None] & in_head[None, :], other=0.0)
                if QUANT:
                    v_scale = tl.load(V_SCALE + slot // HEAD_DIM, mask=present, other=0.0).to(tl.float32)
                s = tl.where(kept[:, None], s, float("-inf"))
                acc, m, total = weigh(q, s, v, v_scale, acc, m, total, QUANT, True)
        safe = tl.where(total > 0, total, 1.0)
        lse = tl.where(total > 0, m + tl.log2(safe), float("-inf"))
        out, weight, top = merge(out, weight, top, acc / safe[:, None], tl.where(total > 0, 1.0, 0.0), lse)

    tl.atomic_add(COUNTS, tl.sum(looked_at, 0).to(tl.int64))
    tl.atomic_add(COUNTS + 1, tl.sum(left_out, 0).to(tl.int64))
    store_part(
        OUT, PART_OUT, PART_WEIGHT, PART_TOP, part_at, row, head, num_heads, wanted, out, weight, top,
        GROUP, HEAD_DIM, BLOCK_M, BLOCK_D,
    )  # fmt: skip


def over(dense: InPages) -> InPages:
    """Rows that may leave out tiles, and ``dense`` for all others."""

    def in_pages(pages: Pages, rows: Rows) -> Tensor:
        skip = rows.skip
        return dense(pages, rows) if skip is None or not skip.share else _in_pages(pages, rows, skip)

    return in_pages


def _numbers_of_keys(rows: Rows) -> Tensor:
    """int32 [T], how many keys each row sees without its window: its context and the rows up to itself, or its path."""
    if _numbers_of_keys not in rows.kept:
        bounds, contexts = host_list(rows.cu_seqlens), host_list(rows.context_lens)
        each = [
            torch.arange(context + 1, context + 1 + end - begin, dtype=torch.int32)
            for context, (begin, end) in zip(contexts, pairwise(bounds), strict=True)
        ]
        sees = to_device(torch.cat(each), rows.q.device)
        for s, mask in enumerate(packed_trees(rows) or ()):
            if mask is not None:
                sees[bounds[s] : bounds[s + 1]] = contexts[s] + mask.sum(-1, dtype=torch.int32)
        rows.kept[_numbers_of_keys] = sees
    numbers: Tensor = rows.kept[_numbers_of_keys]
    return numbers


def _in_pages(pages: Pages, rows: Rows, skip: Skip) -> Tensor:
    """As `sparse_attn.kernels.triton.in_pages.in_pages`, and as `Skip` says."""
    fixed = FixedLaunch.of(pages, rows)
    if not fixed.grid[0]:
        return fixed.out
    constants = fixed.constants(pages, rows)
    assert constants["SHARE"] * pages.page_size % SKIP_CHUNK == 0
    num_heads = rows.q.shape[1]
    _skipping_kernel[fixed.grid](
        *(rows.q, pages.k, pages.v, pages.k_scale, pages.v_scale, *fixed.into, fixed.launch.items),
        *(pages.block_tables, fixed.trees, _numbers_of_keys(rows), skip.counts),
        *(float(rows.scale), float(rows.softcap), int(rows.window), float(skip.share), SKIP_MOST, int(skip.gate)),
        *(rows.q.stride(0), rows.q.stride(1), pages.k.stride(0), pages.k.stride(1), pages.block_tables.stride(0)),
        *(num_heads, num_heads // rows.k.shape[1]),
        TILE=SKIP_TILE,
        CHUNK=SKIP_CHUNK,
        **constants,
    )
    return fixed.joined(rows)

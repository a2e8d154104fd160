"""Page selection of decode in two launches a layer, in Triton: what `plan.select` and `plan.decode_plan` do in eighty.

The first takes, for each row that selects and each KV head, the heaviest pages by the bounds of their keys. The second
writes down what each run of rows visits: the frames of sinks, chosen pages and everything recent, one behind the other.
Such a list is a page table: attention reads it as if the sequence had no other pages (`in_pages.attend`), for what is
new lies in the last ones. Nothing depends on values but the contents, so a captured graph holds all of it.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from sparse_attn.kernels.work import LISTED_FIELDS, OF_EARLIER


@triton.jit(do_not_specialize=["width"])
def _choose_kernel(
    BOUNDS, ENDS, STREAMING, CHOSEN, scale, top_p, first, width,
    GROUP: tl.constexpr, PAGES: tl.constexpr, MOST: tl.constexpr, BLOCK_K: tl.constexpr, BY_MASS: tl.constexpr,
):  # fmt: skip
    """One row and KV head: the MOST heaviest of its pages first to ENDS - 1, ascending; a row with an end of -1 chooses
    none. A threshold on the bits of a weight is found by bisection: floats that are not negative ascend as integers."""
    row = tl.program_id(0)
    head = tl.program_id(1)
    heads = tl.num_programs(1)
    end = tl.load(ENDS + row)
    if end >= 0:
        page = tl.arange(0, PAGES)
        inside = (page >= first) & (page < end)
        weights = tl.zeros([PAGES], tl.float32)
        for g in range(GROUP):
            at = ((row * heads + head) * GROUP + g).to(tl.int64) * width
            bound = tl.load(BOUNDS + at + page, mask=inside, other=float("-inf")) * scale
            top = tl.max(bound, 0)
            weight = tl.where(inside, tl.exp2((bound - top) * 1.4426950408889634), 0.0)
            weight = tl.where(weight == weight, weight, 0.0)
            total = tl.sum(weight, 0)
            weights += weight / tl.where(total > 0, total, 1.0)
        weights = weights / GROUP
        bits = tl.where(inside, weights.to(tl.int32, bitcast=True), -1)
        wanted = tl.minimum(tl.maximum(end - first, 0), MOST)
        wanted = tl.where(tl.load(STREAMING + head) != 0, 0, wanted)
        least = 0
        step = 1073741824
        for _ in range(31):
            enough = tl.sum((bits >= least + step).to(tl.int32), 0) >= wanted
            least = tl.where(enough, least + step, least)
            step = step // 2
        above = bits > least
        level = bits == least
        room = wanted - tl.sum(above.to(tl.int32), 0)
        chosen = above | (level & (tl.cumsum(level.to(tl.int32), 0) <= room))
        if BY_MASS:
            weights = tl.where(chosen, weights, 0.0)
            bits = tl.where(chosen, bits, -1)
            mass = top_p * tl.sum(weights, 0)
            least = 0
            step = 1073741824
            for _ in range(31):
                reached = tl.sum(tl.where(bits >= least + step, weights, 0.0), 0) >= mass
                least = tl.where(reached, least + step, least)
                step = step // 2
            above = bits > least
            level = bits == least
            before = tl.sum(tl.where(above, weights, 0.0), 0) + (tl.cumsum(level.to(tl.int32), 0) - 1) * weights
            chosen = above | (level & (before < mass))
        place = tl.cumsum(chosen.to(tl.int32), 0) - 1
        to = CHOSEN + (row * heads + head) * MOST
        tl.store(to + place, page, mask=chosen)
        rest = tl.arange(0, BLOCK_K)
        tl.store(to + rest, -1, mask=(rest >= tl.sum(chosen.to(tl.int32), 0)) & (rest < MOST))


def choose_pages(
    bounds: Tensor, ends: Tensor, streaming: Tensor, chosen: Tensor, scale: float, first: int, top_p: float = 1.0
) -> None:
    """Into ``chosen`` int32 [R, Hkv, k]: as `plan.select.page_weights` and `best_pages` of each row's bounds.

    bounds float32 [R, Hq, P]; ends int32 [R], behind the last candidate, -1 for a row that chooses nothing and leaves
    what was; streaming int32 [Hkv], not 0 for heads that choose nothing. Of equal weights the first pages are taken.
    """
    rows, heads, most = chosen.shape
    width = bounds.shape[2]
    _choose_kernel[(rows, heads)](
        *(bounds, ends, streaming, chosen, float(scale), float(top_p), first, width),
        GROUP=bounds.shape[1] // heads,
        PAGES=max(16, triton.next_power_of_2(width)),
        MOST=most,
        BLOCK_K=max(16, triton.next_power_of_2(most)),
        BY_MASS=top_p < 1.0,
        num_warps=8 if width > 1024 else 4,
    )


@triton.jit(do_not_specialize=["stride_table", "stride_list"])
def _list_kernel(
    RUNS, CHOSEN, KEPT, STREAMING, TABLES, CONTEXT_LENS, LISTS, CONTEXTS, VISITED,
    sink_pages, streaming_sink_pages, stride_table, stride_list,
    FIELDS: tl.constexpr, PAGE: tl.constexpr, MOST: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_P: tl.constexpr,
    EARLIER: tl.constexpr,
):  # fmt: skip
    """One run and KV head: the frames that it visits, and where new rows begin if these are all its sequence has."""
    run = tl.program_id(0)
    head = tl.program_id(1)
    heads = tl.num_programs(1)
    info = RUNS + run * FIELDS
    seq = tl.load(info)
    source = tl.load(info + 1)
    end = tl.load(info + 2)
    streams = tl.load(STREAMING + head) != 0
    recent = tl.minimum(tl.where(streams, tl.load(info + 4), tl.load(info + 3)), end)
    sinks = tl.minimum(tl.where(streams, streaming_sink_pages, sink_pages), recent)
    table = TABLES + seq.to(tl.int64) * stride_table
    own = run * heads + head
    to = LISTS + own.to(tl.int64) * stride_list

    some = tl.arange(0, BLOCK_K)
    of = source + 0 * some
    of_row = tl.load(CHOSEN + (source * heads + head) * MOST + some, mask=(some < MOST) & (of >= 0), other=-1)
    before = tl.load(KEPT + (seq * heads + head) * MOST + some, mask=(some < MOST) & (of == EARLIER), other=-1)
    pages = tl.where(of >= 0, of_row, before)
    taken = (pages >= sinks) & (pages < recent)
    place = sinks + tl.cumsum(taken.to(tl.int32), 0) - 1
    tl.store(to + place, tl.load(table + pages, mask=taken, other=0), mask=taken)
    count = sinks + tl.sum(taken.to(tl.int32), 0)
    offs = tl.arange(0, BLOCK_P)
    for begin in range(0, sinks, BLOCK_P):
        page = begin + offs
        tl.store(to + page, tl.load(table + page, mask=page < sinks, other=0), mask=page < sinks)
    for begin in range(recent, end, BLOCK_P):
        page = begin + offs
        tl.store(to + count - recent + page, tl.load(table + page, mask=page < end, other=0), mask=page < end)
    tl.store(CONTEXTS + own, tl.load(CONTEXT_LENS + seq) - (recent - count) * PAGE)
    tl.store(VISITED + own, end - recent + count)


def list_pages(
    runs: Tensor,
    chosen: Tensor,
    kept: Tensor,
    streaming: Tensor,
    tables: Tensor,
    context_lens: Tensor,
    into: tuple[Tensor, Tensor, Tensor],
    sinks: tuple[int, int],
    page_size: int,
) -> None:
    """What runs of rows visit: into lists int32 [N, Hkv, P] of frames, contexts int32 [N, Hkv], visited int32 [N, Hkv].

    A list ends with the pages of the sequence's new rows, and ``contexts`` tokens lie before those in its pages;
    ``visited`` is the number of its pages.

    Args:
        runs: int32 [N, len(LISTED_FIELDS)]. chosen: int32 [R, Hkv, k], by row. kept: int32 [S, Hkv, k], by sequence.
        streaming: int32 [Hkv]. tables: int32 [S, P]. context_lens: int32 [S], tokens in pages.
        sinks: first pages that selecting heads and streaming heads see.
    """
    lists, contexts, visited = into
    most = chosen.shape[2]
    _list_kernel[lists.shape[:2]](
        *(runs, chosen, kept, streaming, tables, context_lens, lists, contexts, visited),
        *(*sinks, tables.stride(0), lists.stride(1)),
        FIELDS=len(LISTED_FIELDS),
        PAGE=page_size,
        MOST=most,
        BLOCK_K=max(16, triton.next_power_of_2(most)),
        BLOCK_P=128,
        EARLIER=OF_EARLIER,
    )

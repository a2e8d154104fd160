"""Are the kernels right at the shapes of production? What a shape gets wrong is not timed.

Tests run at toy sizes; here are tiles of 128 rows, pages of 64, heads of 128 numbers, groups of 4 and 7, dozens of
shares, bfloat16 and a pool of more than 2^31 numbers, each against float32 arithmetic in plain torch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from eval.bench.gpu.kernels import Bench, Shape

if TYPE_CHECKING:
    import torch

    from sparse_attn.kernels.operands import Pages, Rows

LONG = 130_000
"""Tokens of the longest context that is checked."""


@dataclass(frozen=True)
class Case:
    """Sequences of so many new rows behind these contexts."""

    name: str
    contexts: tuple[int, ...]
    rows: int
    tree: bool = False
    window: int = 0
    int8: bool = False
    heads: tuple[int, int] = (32, 8)
    invariant: bool = False
    skips: bool = False


def cases(scale: int = 1) -> list[Case]:
    """All of them, with contexts of an ``1 / scale``."""

    def n(length: int) -> int:
        return length // scale

    return [
        Case("decode, uneven", (n(LONG), n(1000), n(64), n(5)), 1),
        Case("decode, groups of 7", (n(LONG), n(333)), 1, heads=(28, 4)),
        Case("decode with a window", (n(LONG), n(9000)), 1, window=max(8, n(4096))),
        Case("decode over int8", (n(LONG), n(777)), 1, int8=True),
        Case("a tree of 33", (n(65_000),), 33 if scale == 1 else 5, tree=True),
        Case("trees of 65, groups of 7", (n(20_000), n(100)), 65 if scale == 1 else 4, tree=True, heads=(28, 4)),
        Case("a chunk behind a context", (n(5_001),), 300 if scale == 1 else 20),
        Case("chunks over int8", (n(1_000), 0), 130 if scale == 1 else 6, int8=True),
        Case("invariant decode, uneven", (n(LONG), n(1000), n(64)), 1, invariant=True),
        Case("an invariant tree of 33", (n(65_000),), 33 if scale == 1 else 5, tree=True, invariant=True),
        Case("an invariant chunk, groups of 7", (n(9_001),), 300 if scale == 1 else 20, heads=(28, 4), invariant=True),
        Case("decode that skips next to nothing", (n(LONG), n(1000)), 1, skips=True),
        Case("a chunk that skips next to nothing", (n(9_001),), 300 if scale == 1 else 20, skips=True),
    ]


def check(bench: Bench, scale: int = 1) -> list[dict[str, Any]]:
    """A row for each case: the largest error beside the largest number, and whether it is within rounding."""
    rows = [_checked(case, bench, _run_case(bench, case)) for case in cases(scale)]
    rows.append(_row("graph replay equals eager", _replayed(bench, scale)))
    if bench.device.type == "cuda":
        rows.append(_row("a pool of more than 2^31 numbers", _far_pages(bench)))
    return rows


def _checked(case: Case, bench: Bench, error: float) -> dict[str, Any]:
    return _row(case.name, error, 2e-2 if bench.dtype.itemsize == 2 else 1e-5)


def _row(name: str, error: float, most: float = 0.0) -> dict[str, Any]:
    return {"case": name, "error": error, "right": error <= most}


def _run_case(bench: Bench, case: Case) -> float:
    import torch

    from eval.bench.gpu.kernels import in_int8
    from sparse_attn.kernels.operands import Skip
    from sparse_attn.kernels.triton import in_pages as by_load
    from sparse_attn.kernels.triton import invariant, skipping

    shape = replace(bench.shape, heads=case.heads[0], kv_heads=case.heads[1])
    own = Bench(shape, bench.device, bench.dtype)
    torch.manual_seed(0)
    pages, rows = own.paged(list(case.contexts), case.rows)
    rows.window = case.window
    if case.tree:
        rows.tree_masks = [_tree(case.rows, bench.device) for _ in case.contexts]
    if case.skips:  # what is left out then weighs less than a millionth of the largest
        rows.skip = Skip(1e-6, 0, torch.zeros(2, dtype=torch.int64, device=bench.device))
    held = in_int8(pages) if case.int8 else pages
    attend = invariant.in_pages if case.invariant else skipping.over(by_load.in_pages)
    return _error(attend(held, rows), held, rows)


def _tree(count: int, device: torch.device) -> torch.Tensor:
    """Each node below the one at half its number."""
    import torch

    mask = torch.eye(count, dtype=torch.bool)
    for node in range(1, count):
        mask[node] |= mask[(node - 1) // 2]
    return mask.to(device)


def _error(got: torch.Tensor, pages: Pages, rows: Rows) -> float:
    """The largest difference from float32, over the largest number; infinite where any is no number."""
    import torch

    from sparse_attn.host_values import host_list

    worst, most = 0.0, 0.0
    bounds, contexts = host_list(rows.cu_seqlens), host_list(rows.context_lens)
    group = rows.q.shape[1] // rows.k.shape[1]
    for s, context in enumerate(contexts):
        own = slice(bounds[s], bounds[s + 1])
        count = own.stop - own.start
        k, v = (x.float() for x in pages.gather(s, context + count, torch.float32))
        keys = torch.arange(context + count, device=k.device)
        seen = keys <= context + torch.arange(count, device=k.device)[:, None]
        if rows.tree_masks is not None and (mask := rows.tree_masks[s]) is not None:
            seen[:, context:] = mask.to(k.device).bool()
        if rows.window:
            seen &= keys > context + torch.arange(count, device=k.device)[:, None] - rows.window
        q = rows.q[own].float().unflatten(1, (-1, group))  # [n, Hkv, g, D]
        scores = torch.einsum("nhgd,hkd->hgnk", q, k) * rows.scale
        weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
        expected = torch.einsum("hgnk,hkd->nhgd", weights, v).flatten(1, 2)
        difference = (got[own].float() - expected).abs().max()
        if not bool(torch.isfinite(difference)):
            return float("inf")
        worst, most = max(worst, float(difference)), max(most, float(expected.abs().max()))
    return worst / most


def _replayed(bench: Bench, scale: int) -> float:
    """The largest difference between a launch and its replay, which reads another plan from the same buffers."""
    import torch

    from sparse_attn.kernels.triton.in_pages import in_pages

    pages, rows = bench.paged([LONG // scale, 1000 // scale], 1)
    expected = in_pages(pages, rows).clone()
    if bench.device.type == "cuda":
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = in_pages(pages, rows)
        graph.replay()
        return float((out - expected).abs().max())
    return float((in_pages(pages, rows) - expected).abs().max())


def _far_pages(bench: Bench) -> float:
    """Error over pages beyond 2^31 numbers of the pool."""
    import torch

    from sparse_attn.kernels.triton.in_pages import in_pages

    shape = Shape()
    own = Bench(shape, bench.device, bench.dtype)
    pages, rows = own.paged([5000], 1)
    count = (1 << 31) // (shape.kv_heads * shape.page * shape.dim) + len(pages.k)
    for name in ("k", "v"):
        few = getattr(pages, name)
        pool = torch.empty(count, *few.shape[1:], dtype=few.dtype, device=few.device)
        pool[-len(few) :] = few
        setattr(pages, name, pool)
    pages.block_tables += count - len(few)
    error = _error(in_pages(pages, rows), pages, rows)
    return 0.0 if error <= 2e-2 else error

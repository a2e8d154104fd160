"""Attention and products whose rows do not depend on one another: the reference's numbers, and equal bits."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from sparse_attn.kernels import fixed_work
from sparse_attn.kernels.operands import Pages, Rows
from sparse_attn.kernels.triton import linear as triton_linear
from sparse_attn.kernels.triton.invariant import in_pages
from sparse_attn.kernels.triton.launch import INTERPRETED
from sparse_attn.kernels.triton.linear import linear, shares_of
from sparse_attn.kv.quant import quantize

from .test_in_pages import PAGE, InPages, positions, tree

DEVICE = "cpu" if INTERPRETED else "cuda"


@pytest.fixture(autouse=True)
def _short_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fixed_work, "SHARE_KEYS", 32)


def test_the_numbers_are_those_of_the_reference() -> None:
    launch = InPages([1, 0, 33], [47, 9, 20], 2, 1, 16).check(attend=in_pages)
    assert launch.parts
    InPages([3, 1], [20, 40], 7, 1, 24, torch.float16).check(2e-3, attend=in_pages)
    mask, depth = tree()
    batch = InPages([5, 1, 5], [45, 20, 14], 2, 1, 16)
    own = positions(batch, depth, None, depth)
    for window in (0, 20):
        batch.check(attend=in_pages, tree_masks=[mask, None, mask], window=window, positions=own)
    batch.q *= 8
    batch.check(attend=in_pages, softcap=5.0)


def one_row(batch: InPages, s: int, order: list[int], pages: Pages, **options: Any) -> torch.Tensor:
    """What the last of the new rows ``order`` of a sequence comes to, where the others lie before it as context."""
    row = sum(batch.lens[:s]) + order[-1]
    every = batch.rows(DEVICE)
    frames = batch.tables[s].long()
    context = batch.contexts[s]
    for target, source in enumerate(order):  # as accepted nodes are kept
        at, to = context + source, context + target
        for side in (pages.k, pages.v, *(() if pages.k_scale is None else (pages.k_scale, pages.v_scale))):
            side[frames[to // PAGE], :, to % PAGE] = side[frames[at // PAGE], :, at % PAGE].clone()
    q, k, v = (x[row : row + 1] for x in (every.q, every.k, every.v))
    options = {name: value[row : row + 1] if name == "positions" else value for name, value in options.items()}
    alone = Rows.of_sequence(q, k, v, batch.scale, context + len(order) - 1)
    for name, value in options.items():
        setattr(alone, name, value)
    table = pages.block_tables[s : s + 1]
    return in_pages(Pages(pages.k, pages.v, table, pages.k_scale, pages.v_scale), alone)[0]


@pytest.mark.parametrize(("kind", "window"), [("float32", 0), ("float16", 20), ("int8", 0)])
def test_a_row_has_the_bits_that_it_has_alone(kind: str, window: int) -> None:
    """In a chunk, in a tree whose paths fork across a border of shares, beside other sequences."""
    dtype = torch.float16 if kind == "float16" else torch.float32
    batch = InPages([5, 34, 1], [29, 30, 50], 4, 1, 16, dtype)
    mask, depth = tree()
    pages = batch.held()
    if kind == "int8":
        (k, k_scale), (v, v_scale) = (quantize(x.nan_to_num()) for x in (pages.k, pages.v))
        pages = Pages(k, v, pages.block_tables, k_scale, v_scale)
    options = {"window": window, "positions": positions(batch, depth, None, None).to(DEVICE)}
    together = in_pages(pages, batch.rows(DEVICE, tree_masks=[mask, None, None], **options))
    for s, row in [(0, 0), (0, 3), (0, 4), (1, 1), (1, 33), (2, 0)]:
        path = mask[row].nonzero()[:, 0].tolist() if s == 0 else list(range(row + 1))
        own = Pages(pages.k.clone(), pages.v.clone(), pages.block_tables, *(
            None if scale is None else scale.clone() for scale in (pages.k_scale, pages.v_scale)))  # fmt: skip
        assert torch.equal(one_row(batch, s, path, own, **options), together[sum(batch.lens[:s]) + row]), (s, row)


def test_it_does_not_matter_who_goes_through_the_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = InPages([5, 3], [70, 50], 2, 1, 16)
    mask, _ = tree()
    split = in_pages(batch.held(), (rows := batch.rows(DEVICE, tree_masks=[mask, None])))
    monkeypatch.setattr(fixed_work, "PROGRAMS", 0)
    in_turn = in_pages(batch.held(), (other := batch.rows(DEVICE, tree_masks=[mask, None])))
    assert len(list(rows.kept.values())[-1].items) > len(list(other.kept.values())[-1].items)
    assert torch.equal(split, in_turn)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("bias", [True, False])
def test_a_product_is_right_and_a_row_of_it_has_the_bits_that_it_has_alone(
    dtype: torch.dtype, bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triton_linear, "LEAST_STEPS", 1)
    g = torch.Generator().manual_seed(0)
    columns, depth = 130, 135
    assert shares_of(columns, depth)[0] == 3
    x, weight = (torch.randn(n, depth, generator=g).to(DEVICE, dtype) for n in (200, columns))
    own = torch.randn(columns, generator=g).to(DEVICE, dtype) if bias else None
    every = linear(x, weight, own)
    expected = x.double() @ weight.double().T + (own.double() if own is not None else 0)
    tolerance = 1e-4 if dtype == torch.float32 else 3e-2
    torch.testing.assert_close(every.double(), expected, atol=tolerance, rtol=2e-3)
    some = range(1, 65) if bias and dtype == torch.float32 else (1, 2, 33, 64)
    for count in (*some, 65, 100, 129):
        assert torch.equal(linear(x[:count], weight, own), every[:count]), count
    assert torch.equal(linear(x[70:79], weight, own), every[70:79])
    assert linear(x[:2], weight, own, torch.float32).dtype == torch.float32


def test_weights_are_cut_by_their_shape_alone_and_enough_for_a_whole_gpu() -> None:
    for columns, depth in [(4096, 4096), (1024, 4096), (14336, 4096), (4096, 14336), (128256, 4096), (640, 960)]:
        shares, each = shares_of(columns, depth)
        assert (shares - 1) * each < depth <= shares * each
        assert each % 64 == 0
        assert shares <= 8
    assert shares_of(4096, 14336)[0] * 4096 // 128 >= 250

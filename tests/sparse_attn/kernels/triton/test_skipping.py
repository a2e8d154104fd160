"""Tiles that are left out on a GPU: which ones and what remains, against the reference in plain torch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from sparse_attn.errors import UnsupportedModelFeature
from sparse_attn.kernels import INVARIANT, dense, fixed_work, select_kernels, triton_kernels
from sparse_attn.kernels.operands import Pages, Skip
from sparse_attn.kernels.triton import attention as triton_attention
from sparse_attn.kernels.triton import skipping
from sparse_attn.kernels.triton.launch import INTERPRETED
from sparse_attn.kv.quant import dequantize, quantize

from .test_in_pages import PAGE, InPages, positions, tree

DEVICE = "cpu" if INTERPRETED else "cuda"


@pytest.fixture(autouse=True)
def _short_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fixed_work, "SHARE_KEYS", 1024)  # one chunk, so that there are several


def never(pages: Pages, rows: Any) -> torch.Tensor:
    raise AssertionError("these rows may leave out tiles")


in_pages = skipping.over(never)


def skip(share: float, gate: int = 0, device: str = "cpu") -> Skip:
    return Skip(share, gate, torch.zeros(2, dtype=torch.int64, device=device))


def check(batch: InPages, share: float, gate: int = 0, tolerance: float = 2e-6, **options: Any) -> float:
    """The share of tiles left out, which are those of the reference."""
    ours, theirs = skip(share, gate, DEVICE), skip(share, gate)
    exact = Pages(*(x.double() for x in batch.pools), batch.tables)
    expected, _ = dense.attention(exact, batch.rows("cpu", torch.float64, skip=theirs, **options))
    got = in_pages(batch.held(), batch.rows(DEVICE, skip=ours, **options))
    torch.testing.assert_close(got.cpu().double(), expected, atol=tolerance, rtol=tolerance)
    assert ours.counts.tolist() == theirs.counts.tolist()
    return float(theirs.counts[1] / theirs.counts[0])


@pytest.mark.parametrize(("lens", "contexts"), [([1, 1, 0], [2200, 40, 9]), ([40, 1], [1090, 1100]), ([200], [0])])
@pytest.mark.parametrize("share_keys", [1024, 2048])
def test_the_tiles_and_the_numbers_are_those_of_the_reference(
    lens: list[int], contexts: list[int], share_keys: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fixed_work, "SHARE_KEYS", share_keys)
    batch = InPages(lens, contexts, 4, 2, 16)
    batch.q *= 4
    assert 0.02 < check(batch, 300.0) < 0.9
    check(batch, 300.0, window=300, positions=positions(batch, *[None] * len(lens)))
    assert check(batch, 300.0, gate=10_000) == 0


def test_nodes_of_trees_leave_out_what_their_paths_would() -> None:
    """Beside a sequence without one; the first tile of a short context is no measure for a tree."""
    mask, depth = tree()
    # paths across the borders of a chunk and of a tile, and behind a share that all nodes read together
    for contexts in ([1021, 300, 58], [60, 300, 70], [1100, 5, 2047]):
        batch = InPages([5, 3, 5], contexts, 4, 2, 16)
        batch.q *= 3
        own = positions(batch, depth, None, depth)
        assert check(batch, 300.0, tree_masks=[mask, None, mask], positions=own) > 0
        check(batch, 300.0, tree_masks=[mask, None, mask], positions=own, window=80)
        check(batch, 300.0, gate=contexts[0] + 3, tree_masks=[mask, None, mask], positions=own)


def test_soft_caps_and_half_precision() -> None:
    batch = InPages([2], [700], 2, 1, 16)
    batch.q *= 8
    assert check(batch, 300.0, softcap=20.0) > 0
    assert check(InPages([1], [400], 7, 1, 24, torch.float16), 1e-6, tolerance=2e-3) == 0


def test_int8_pages() -> None:
    batch = InPages([3], [1200], 4, 1, 16)
    batch.q *= 4
    (k8, k_scale), (v8, v_scale) = (quantize(x.nan_to_num()) for x in batch.pools)
    exact = Pages(dequantize(k8, k_scale).double(), dequantize(v8, v_scale).double(), batch.tables)
    rows = batch.rows("cpu", torch.float64, skip=skip(60.0))
    rows.k, rows.v = (side[:, 1200:].transpose(0, 1) for side in exact.gather(0, 1203, torch.float64))
    expected, _ = dense.attention(exact, rows)
    ours = skip(60.0, device=DEVICE)
    codes = Pages(*(x.to(DEVICE) for x in (k8, v8, batch.tables, k_scale, v_scale)))
    got = in_pages(codes, batch.rows(DEVICE, skip=ours))
    torch.testing.assert_close(got.cpu().double(), expected, atol=2e-6, rtol=2e-6)
    assert rows.skip is not None
    assert ours.counts.tolist() == rows.skip.counts.tolist()
    assert ours.counts[1] > 0


def test_a_row_of_a_chunk_has_the_bits_that_it_has_alone() -> None:
    batch = InPages([70], [1000], 4, 1, 16)
    batch.q *= 4
    together = in_pages(batch.held(), batch.rows(DEVICE, skip=skip(60.0, device=DEVICE)))
    for row in (0, 23, 69):
        rows = batch.rows(DEVICE, skip=skip(60.0, device=DEVICE))
        own = (x[row : row + 1] for x in (rows.q, rows.k, rows.v))
        alone = replace(rows, **dict(zip("qkv", own, strict=True)), kept={})
        alone.cu_seqlens, alone.context_lens = (
            x.to(DEVICE) for x in (torch.tensor([0, 1]), torch.tensor([1000 + row]))
        )
        assert torch.equal(in_pages(batch.held(), alone)[0], together[row])


def test_who_may_leave_out_nothing_goes_the_dense_way() -> None:
    batch = InPages([1], [3 * PAGE])
    with pytest.raises(AssertionError, match="may leave out tiles"):
        in_pages(batch.held(), batch.rows(DEVICE))
    kernels = triton_kernels()
    assert kernels.in_pages is not None
    rows = batch.rows(DEVICE, skip=skip(1e6, device=DEVICE))
    kernels.in_pages(batch.held(), rows)
    assert rows.skip is not None
    assert rows.skip.counts[0] > 0
    with pytest.raises(UnsupportedModelFeature, match="join it with no other"):
        triton_attention.attention(batch.held(), rows)


@pytest.mark.gpu
def test_invariant_kernels_leave_out_as_well() -> None:
    kernels = select_kernels(torch.device("cuda"), torch.float16, INVARIANT)
    batch = InPages([1], [3 * PAGE], dtype=torch.float16)
    rows = batch.rows(DEVICE, skip=skip(1.0, device=DEVICE))
    assert kernels.in_pages is not None
    kernels.in_pages(batch.held(), rows)
    assert rows.skip is not None
    assert rows.skip.counts[0] > 0

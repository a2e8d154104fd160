"""Dense attention of rows that lie in pages, against the float64 reference over the same keys."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from sparse_attn.kernels import dense, work
from sparse_attn.kernels.operands import InPages as InPagesKernel
from sparse_attn.kernels.operands import Pages, Rows
from sparse_attn.kernels.triton.in_pages import _tiling, in_pages, planned
from sparse_attn.kernels.triton.launch import INTERPRETED
from sparse_attn.kernels.work import Launch
from sparse_attn.kv.quant import dequantize, quantize

DEVICE = "cpu" if INTERPRETED else "cuda"
PAGE = 16


class InPages:
    """Sequences whose contexts and new rows lie in shuffled pages; slots that nobody wrote are NaN."""

    def __init__(self, lens: list[int], contexts: list[int], heads: int = 4, kv_heads: int = 2, dim: int = 32,
                 dtype: torch.dtype = torch.float32) -> None:  # fmt: skip
        g = torch.Generator().manual_seed(0)
        self.lens, self.contexts, self.scale, self.dtype = lens, contexts, dim**-0.5, dtype
        each = [-(-(n + c) // PAGE) for n, c in zip(lens, contexts, strict=True)]
        order = torch.randperm(sum(each) + 2, generator=g).int()
        self.tables = torch.zeros(len(lens), max(1, *each), dtype=torch.int32)
        self.pools = [torch.full((len(order), kv_heads, PAGE, dim), torch.nan, dtype=dtype) for _ in range(2)]
        self.q = torch.randn(sum(lens), heads, dim, generator=g).to(dtype)
        self.new: list[list[torch.Tensor]] = [[], []]
        for s, (count, n, c) in enumerate(zip(each, lens, contexts, strict=True)):
            self.tables[s, :count], order = order[:count], order[count:]
            at = torch.arange(n + c)
            frames = self.tables[s].long()[at // PAGE]
            for pool, new in zip(self.pools, self.new, strict=True):
                rows = torch.randn(n + c, kv_heads, dim, generator=g).to(dtype)
                pool[frames, :, at % PAGE] = rows
                new.append(rows[c:])
        self.bounds = torch.tensor([0, *lens]).cumsum(0).int()

    def rows(self, device: str, dtype: torch.dtype | None = None, **options: Any) -> Rows:
        new = (x.to(device, dtype or self.dtype) for x in (self.q, torch.cat(self.new[0]), torch.cat(self.new[1])))
        moved = {n: x.to(device) if isinstance(x, torch.Tensor) else x for n, x in options.items()}
        lengths = torch.tensor(self.contexts, dtype=torch.int32)
        return Rows(*new, self.bounds.to(device), lengths.to(device), self.scale, **moved)

    def held(self) -> Pages:
        return Pages(*(x.to(DEVICE) for x in self.pools), self.tables.to(DEVICE))

    def check(self, tolerance: float = 2e-6, attend: InPagesKernel = in_pages, **options: Any) -> Launch:
        held, rows = self.held(), self.rows(DEVICE, **options)
        exact = Pages(*(x.double() for x in self.pools), self.tables)
        expected, _ = dense.attention(exact, self.rows("cpu", torch.float64, **options))
        got = attend(held, rows)
        assert got.dtype == self.dtype
        torch.testing.assert_close(got.cpu().double(), expected, atol=tolerance, rtol=tolerance)
        [launch] = [value for value in rows.kept.values() if isinstance(value, Launch)]
        return launch


def positions(batch: InPages, *depths: torch.Tensor | None) -> torch.Tensor:
    own = [torch.arange(n) if depth is None else depth for n, depth in zip(batch.lens, depths, strict=True)]
    return torch.cat([c + order for c, order in zip(batch.contexts, own, strict=True)])


@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(4, 2, 32), (7, 1, 24), (2, 2, 16)])
def test_decode_and_short_runs(heads: int, kv_heads: int, dim: int) -> None:
    launch = InPages([1, 5, 0, 1], [47, 0, 9, 15], heads, kv_heads, dim).check()
    assert not launch.parts


def test_half_precision() -> None:
    InPages([1, 3], [40, 20], dtype=torch.float16).check(2e-3)


def test_long_contexts_are_split_and_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work, "SHARE_KEYS", 32)
    launch = InPages([1, 3, 1], [150, 9, 70]).check()
    assert launch.parts
    shares = launch.joins[:, 2].tolist()
    assert shares[0] > shares[4] > 1
    assert shares[1:4] == [1, 1, 1]


def test_a_chunk_has_tiles_of_one_head(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work, "PREFILL_ROWS", 20)
    batch = InPages([70, 21], [37, 0], heads=2, kv_heads=1, dim=16)
    assert batch.check().tiling.group == 1


def tree() -> tuple[torch.Tensor, torch.Tensor]:
    """Two chains below one root."""
    mask = torch.eye(5, dtype=torch.bool)
    mask[:, 0] = mask[3, 1] = mask[4, 2] = True
    return mask, torch.tensor([0, 1, 1, 2, 2])


@pytest.mark.parametrize("window", [0, 4, 30])
def test_trees_beside_plain_rows(window: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work, "SHARE_KEYS", 16)
    mask, depth = tree()
    batch = InPages([5, 1, 3], [45, 20, 14])
    batch.check(tree_masks=[mask, None, None], window=window, positions=positions(batch, depth, None, None))


@pytest.mark.parametrize("share", [32, 1024])
@pytest.mark.parametrize("window", [44, 49, 60])
def test_pages_in_the_midst_of_a_window_have_no_mask(window: int, share: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work, "SHARE_KEYS", share)
    mask, depth = tree()
    batch = InPages([1, 5, 4], [110, 100, 63])
    batch.check(window=window, positions=positions(batch, None, None, None))
    batch.check(tree_masks=[None, mask, None], window=window, positions=positions(batch, None, depth, None))


def test_soft_caps_and_windows_of_chains() -> None:
    batch = InPages([4, 1], [45, 30])
    batch.q *= 8
    batch.check(softcap=5.0, window=24, positions=positions(batch, None, None))


def test_int8_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work, "SHARE_KEYS", 32)
    batch = InPages([1, 4], [60, 20])
    (k8, k_scale), (v8, v_scale) = (quantize(x.nan_to_num()) for x in batch.pools)
    exact = Pages(dequantize(k8, k_scale).double(), dequantize(v8, v_scale).double(), batch.tables)
    rows = batch.rows("cpu", torch.float64)
    every = []
    for s, (n, c) in enumerate(zip(batch.lens, batch.contexts, strict=True)):
        every.append([side[:, c:].transpose(0, 1) for side in exact.gather(s, n + c, torch.float64)])
    rows.k, rows.v = (torch.cat([own[side] for own in every]) for side in range(2))
    expected, _ = dense.attention(exact, rows)
    codes = Pages(*(x.to(DEVICE) for x in (k8, v8, batch.tables, k_scale, v_scale)))
    torch.testing.assert_close(in_pages(codes, batch.rows(DEVICE)).cpu().double(), expected, atol=2e-6, rtol=2e-6)


def test_rows_of_nobody_are_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the padding of a captured step."""
    monkeypatch.setattr(work, "SHARE_KEYS", 32)
    batch = InPages([1, 1], [90, 60])
    rows = batch.rows(DEVICE)
    launch = planned(rows, None, lambda: _tiling(rows, PAGE))
    launch.joins[1] = 0
    items = launch.items[launch.items[:, 2] == 0]
    padded = torch.cat([items, torch.zeros_like(items)])
    rows.kept[Launch, 2] = Launch(launch.tiling, padded, launch.joins, launch.parts)
    got = in_pages(Pages(*(x.to(DEVICE) for x in batch.pools), batch.tables.to(DEVICE)), rows)
    assert (got[1] == 0).all()
    assert got[0].abs().sum() > 0

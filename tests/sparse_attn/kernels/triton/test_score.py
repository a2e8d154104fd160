"""The scoring kernels against their definitions in torch; under Triton's interpreter where there is no GPU."""

from dataclasses import replace

import pytest
import torch

pytest.importorskip("triton")

from sparse_attn.kernels.triton import score as triton_score
from sparse_attn.kernels.triton.launch import INTERPRETED
from sparse_attn.kv.page_stats import PageStats
from sparse_attn.plan import score
from sparse_attn.plan.grid import Grid
from sparse_attn.rows import HeadPages

DEVICE = "cpu" if INTERPRETED else "cuda"


def to_device(*tensors):
    return [t.to(DEVICE) for t in tensors]


def test_page_bounds_are_kept_as_text_grows():
    g = torch.Generator().manual_seed(0)
    pages = torch.zeros(6, 2, 32, 24)
    expected = PageStats(1, 6, 2, 32, 24)
    kmin, kmax = to_device(expected.kmin[0].clone(), expected.kmax[0].clone())
    slots = (torch.tensor([4, 1, 3])[:, None] * 32 + torch.arange(32)).flatten()
    length = 0
    for count in (5, 1, 30, 11, 16):
        written = slots[length : length + count]
        pages[written // 32, :, written % 32] = torch.randn(count, 2, 24, generator=g)
        length += count
        padded = torch.cat([written, torch.tensor([-1, -1])])
        expected.update(0, pages, padded)
        triton_score.update_page_stats(kmin, kmax, *to_device(pages, padded))
        torch.testing.assert_close(kmin.cpu(), expected.kmin[0], atol=0, rtol=0)
        torch.testing.assert_close(kmax.cpu(), expected.kmax[0], atol=0, rtol=0)


@pytest.mark.parametrize(("num_heads", "dim"), [(2, 16), (8, 24), (14, 64)])
def test_bounds_of_a_batch(make_sequence, num_heads, dim):
    seq = make_sequence(200, num_heads=num_heads, dim=dim, page_size=32, dtype=torch.float32)
    seq.store(0, 200)
    tables = torch.stack([seq.table, seq.table.flip(0)])
    q, rows = (
        seq.q[7:9],
        to_device(seq.q[7:9], seq.stats.kmin[0], seq.stats.kmax[0], tables, torch.tensor([7, 4]).int()),
    )
    got = triton_score.page_bounds(*rows).cpu()
    torch.testing.assert_close(got[0], seq.stats.bounds(0, q[:1], tables[0])[0], atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(got[1, :, :4], seq.stats.bounds(0, q[1:], tables[1])[0][:, :4], atol=1e-4, rtol=1e-5)
    assert (got[1, :, 4:] == -torch.inf).all()


@pytest.mark.parametrize("first", [0, 64, 70])
@pytest.mark.parametrize(("stride", "block"), [(4, 16), (8, 32)])
def test_antidiagonal_scores(make_sequence, first, stride, block):
    seq = make_sequence(150, dim=24, dtype=torch.float32)
    seq.store(0, first)
    rows = seq.rows(first, 150)
    expected = score.antidiagonal(rows, Grid.of(rows, block, block), stride, range(4))
    q, k, key_pages, table = to_device(rows.q, rows.k, seq.key_pages, seq.table)
    there = replace(rows, q=q, k=k, groups=[HeadPages(range(2), key_pages, table)] if first else [])
    got = triton_score.antidiagonal(there, Grid.of(there, block, block), stride)
    torch.testing.assert_close(got.cpu(), expected, atol=1e-5, rtol=1e-4)

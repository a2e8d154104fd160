"""The kernels of page bounds against their definitions in torch; under Triton's interpreter where there is no GPU."""

import pytest
import torch

pytest.importorskip("triton")

from sparse_attn.kernels.triton import page_stats as triton_stats
from sparse_attn.kernels.triton.launch import INTERPRETED
from sparse_attn.kv.page_stats import PageStats

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
        triton_stats.update_page_stats(kmin, kmax, *to_device(pages, padded))
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
    got = triton_stats.page_bounds(*rows).cpu()
    torch.testing.assert_close(got[0], seq.stats.bounds(0, q[:1], tables[0])[0], atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(got[1, :, :4], seq.stats.bounds(0, q[1:], tables[1])[0][:, :4], atol=1e-4, rtol=1e-5)
    assert (got[1, :, 4:] == -torch.inf).all()

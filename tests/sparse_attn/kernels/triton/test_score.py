"""The scoring kernel against its definition in torch; under Triton's interpreter where there is no GPU."""

from dataclasses import replace

import pytest
import torch

pytest.importorskip("triton")

from sparse_attn.kernels.triton import score as triton_score
from sparse_attn.kernels.triton.launch import INTERPRETED
from sparse_attn.plan import score
from sparse_attn.plan.grid import Grid
from sparse_attn.rows import HeadPages

DEVICE = "cpu" if INTERPRETED else "cuda"


def to_device(*tensors):
    return [t.to(DEVICE) for t in tensors]


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

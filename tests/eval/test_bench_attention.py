"""The attention bench: what it times is right, and its parts run."""

import pytest
import torch

from eval.bench.attention import attention
from eval.bench.attention.paged_candidates import NumbaDecode
from sparse_attn.kernels import dense


@pytest.mark.slow
def test_the_numba_candidate_computes_the_same():
    torch.manual_seed(0)
    paged = attention.Paged(192, layers=1)
    rows = paged.rows(1)
    out = NumbaDecode(paged.table, 192, attention.SCALE).bind(rows.q, paged.layer)()
    expected, _ = dense.paged_attention(paged.pages(), rows)
    torch.testing.assert_close(torch.from_numpy(out), expected[0], rtol=0, atol=1e-5)


def test_parts_report_ratios():
    [row] = attention.trees(128, [3], rounds=1)
    assert row["over_limit"] > 0
    [row] = attention.sparse_prefill(256, [0.5], rounds=1)
    assert 0 < row["density"] <= 1
    [row] = attention.page_selection([256], 128, rounds=1)
    assert row["density"] < 1
    [row] = attention.prefill([128], rounds=1)
    assert "float32_over_ours" not in row
    [row] = attention.linear([2], rounds=1)
    assert row["ours_over_library"] > 0


@pytest.mark.slow
def test_bfloat16_is_timed_beside_float32():
    for row in (
        *attention.prefill([128], 1, torch.bfloat16),
        *attention.trees(128, [3], 1, torch.bfloat16),
    ):
        assert row["float32_over_ours"] > 0
    row = attention._narrow_decode(128, rounds=1)
    assert row["float32_over_bfloat16"] > 0
    assert row["int8_over_limit"] > 0
    assert attention.Paged(128, 1, torch.bfloat16).bytes * 2 == attention.Paged(128, 1).bytes

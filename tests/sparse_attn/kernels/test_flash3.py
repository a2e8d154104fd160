"""flash-attn 3 behind pages: what it is called with, by a stand-in that computes what its documentation says."""

from __future__ import annotations

import sys
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from sparse_attn.errors import UnsupportedModelFeature
from sparse_attn.kernels import dense, flash3, select_kernels
from sparse_attn.kernels.operands import Pages, Rows

PAGE, HEADS, KV_HEADS, DIM = 8, 4, 2, 16


def with_kvcache(q: Tensor, k_cache: Tensor, v_cache: Tensor, **given: Any) -> Tensor:
    """The last rows of each sequence, causal, over keys [pages, page_size, Hkv, D] by a block table."""
    bounds, lengths = given["cu_seqlens_q"].tolist(), given["cache_seqlens"].tolist()
    assert given["cache_seqlens"].dtype == torch.int32
    assert given["max_seqlen_q"] >= max(end - begin for begin, end in pairwise(bounds))
    out = torch.empty_like(q)
    for s, length in enumerate(lengths):
        own = slice(bounds[s], bounds[s + 1])
        k, v = (side[given["page_table"][s].long()].flatten(0, 1)[:length] for side in (k_cache, v_cache))
        keys, rows = torch.arange(length), length - (own.stop - own.start) + torch.arange(own.stop - own.start)
        left = given["window_size"][0]
        seen = keys <= rows[:, None]
        if left >= 0:
            seen &= keys >= rows[:, None] - left
        scores = (
            torch.einsum("nhd,khd->hnk", q[own], k.repeat_interleave(HEADS // KV_HEADS, 1)) * given["softmax_scale"]
        )
        weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
        out[own] = torch.einsum("hnk,khd->nhd", weights, v.repeat_interleave(HEADS // KV_HEADS, 1))
    return out


def operands(window: int = 0) -> tuple[Pages, Rows]:
    g = torch.Generator().manual_seed(0)
    pool = [torch.randn(9, KV_HEADS, PAGE, DIM, generator=g) for _ in range(2)]
    pages = Pages(pool[0], pool[1], torch.tensor([[3, 1, 7], [0, 5, 0]], dtype=torch.int32))
    held = [pages.gather(s, length, torch.float32) for s, length in enumerate((21, 9))]
    new = [torch.cat([held[0][side][:, 17:], held[1][side][:, 8:]], 1).transpose(0, 1) for side in range(2)]
    bounds, contexts = torch.tensor([0, 4, 5], dtype=torch.int32), torch.tensor([17, 8], dtype=torch.int32)
    return pages, Rows(torch.randn(5, HEADS, DIM, generator=g), *new, bounds, contexts, 0.25, window=window)


@pytest.mark.parametrize("window", [0, 6])
def test_rows_in_pages_are_one_call(window: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "flash_attn_interface", SimpleNamespace(flash_attn_with_kvcache=with_kvcache))
    pages, rows = operands(window)
    attend = flash3.over(lambda pages, rows: torch.full_like(rows.q, 7.0))
    positions = torch.tensor([17, 18, 19, 20, 8])
    rows.positions = positions
    expected, _ = dense.attention(pages, rows)
    torch.testing.assert_close(attend(pages, rows), expected, atol=1e-5, rtol=1e-5)
    rows.tree_masks = [torch.eye(4, dtype=torch.bool), None]
    assert (attend(pages, rows) == 7).all()  # trees are ours


def test_where_it_is_not_it_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedModelFeature, match="flash-attn-3 is not installed"):
        select_kernels(torch.device("cpu"), torch.float32, "flash-attn-3")

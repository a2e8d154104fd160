"""Other people's dense kernels behind pages: the same numbers as the reference, and refusals by name."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import pytest
import torch

from sparse_attn.errors import UnsupportedModelFeature
from sparse_attn.kernels import dense, select_kernels, whole
from sparse_attn.kernels.operands import Pages, Rows
from sparse_attn.kernels.whole import WHOLE, attend_whole, best_whole, find_whole
from sparse_attn.kv.pool import KVPool, KVShape

CPU = torch.device("cpu")
PAGE, HEADS, KV_HEADS, DIM = 16, 4, 2, 16


def batch(lengths: list[int], contexts: list[int], dtype: torch.dtype, **options: Any) -> tuple[KVPool, Pages, Rows]:
    """A pool with the contexts in shuffled pages, where they lie, and new rows behind them."""
    g = torch.Generator().manual_seed(0)
    pool = KVPool(KVShape(1, KV_HEADS, DIM), 32, PAGE, dtype)
    tables = torch.randperm(32, generator=g).int()[: 12 * len(lengths)].view(len(lengths), 12)

    def noise(count: int, heads: int) -> torch.Tensor:
        return torch.randn(count, heads, DIM, generator=g, dtype=torch.float64).to(
            torch.float32 if dtype == torch.int8 else dtype
        )

    for s, context in enumerate(contexts):
        at = torch.arange(context)
        slots = tables[s].long()[at // PAGE] * PAGE + at % PAGE
        pool.groups[0].write(0, slots, pool.encode(noise(context, KV_HEADS), noise(context, KV_HEADS)))
    rows = sum(lengths)
    bounds = torch.tensor([0, *lengths]).cumsum(0).int()
    new = (noise(rows, HEADS), noise(rows, KV_HEADS), noise(rows, KV_HEADS))
    given = Rows(*new, bounds, torch.tensor(contexts, dtype=torch.int32), 0.25, **options)
    return pool, pool.groups[0].pages(0, tables), given


@pytest.mark.parametrize(
    ("name", "softcap", "window"),
    [("sdpa", 0.0, 0), ("flex", 0.0, 0), ("flex", 5.0, 0), ("flex", 0.0, 50), ("flex", 5.0, 70)],
)
def test_the_numbers_are_those_of_the_reference(name: str, softcap: float, window: int) -> None:
    _, pages, rows = batch([128, 130], [0, 50], torch.float32, softcap=softcap, window=window)
    got = attend_whole(WHOLE[name], pages, rows)
    q, k, v, key_pages, value_pages = (x.double() for x in (rows.q, rows.k, rows.v, pages.k, pages.v))
    positions = torch.cat([torch.arange(128), torch.arange(50, 50 + 130)])
    exact = replace(rows, q=q, k=k, v=v, positions=positions)
    expected, _ = dense.attention(Pages(key_pages, value_pages, pages.block_tables), exact)
    assert got is not None
    torch.testing.assert_close(got.double(), expected, atol=3e-6, rtol=3e-6)


def test_context_and_chunk_are_attended_apart_and_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with cuDNN's kernel, here by torch's own for a CPU, which knows no groups of heads."""
    asked = []

    def part(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, *, causal: bool) -> Any:
        asked.append((k.shape[2], causal))
        k, v = (side.repeat_interleave(q.shape[1] // k.shape[1], 1) for side in (k, v))
        attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        out, lse = attend(q, k, v, 0.0, causal, scale=scale)
        return out[0].transpose(0, 1), lse[0].reshape(q.shape[1:3]).T

    _, pages, rows = batch([128], [50], torch.float32)
    expected = attend_whole(WHOLE["sdpa"], pages, rows)
    monkeypatch.setattr(whole, "_joins", lambda device, dtype: True)
    monkeypatch.setattr(whole, "_cudnn", part)
    torch.testing.assert_close(attend_whole(WHOLE["sdpa"], pages, rows), expected, atol=1e-5, rtol=1e-5)
    assert asked == [(50, False), (128, True)]


def test_windows_and_soft_caps_stay_with_our_kernel_where_sdpa_would_need_a_mask() -> None:
    _, pages, rows = batch([128], [50], torch.float32, window=30)
    assert attend_whole(WHOLE["sdpa"], pages, rows) is None
    assert attend_whole(WHOLE["flex"], pages, rows) is not None


def test_int8_pages_are_read_as_their_values() -> None:
    pool, pages, rows = batch([128], [50], torch.int8)
    got = attend_whole(WHOLE["sdpa"], pages, rows)
    slots = pages.block_tables[0].long()[torch.arange(50) // PAGE] * PAGE + torch.arange(50) % PAGE
    old_k, old_v = pool.groups[0].read(0, slots, torch.float32)
    expected = WHOLE["sdpa"](rows.q, torch.cat([old_k, rows.k]), torch.cat([old_v, rows.v]), 0.25, 0.0, 0)
    torch.testing.assert_close(got, expected)


def test_few_rows_stay_with_the_kernels_that_read_pages() -> None:
    _, pages, rows = batch([128, 3], [0, 20], torch.float32)
    assert attend_whole(WHOLE["sdpa"], pages, rows) is None


def test_a_back_end_is_chosen_and_named() -> None:
    own = select_kernels(CPU, torch.float32)
    assert own.whole is None
    chosen = select_kernels(CPU, torch.float32, "sdpa")
    assert chosen.name == f"{own.name}+sdpa"
    assert chosen.attention is own.attention
    assert select_kernels(CPU, torch.float32, "own") == own
    assert best_whole(CPU, torch.float32) is None
    expected = "flash-attn" if find_spec("flash_attn") else "sdpa"
    assert best_whole(torch.device("cuda"), torch.bfloat16) == expected
    assert best_whole(torch.device("cuda"), torch.float32) is None


def test_what_is_not_here_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sparse_attn.kernels.whole.find_spec", lambda name: None)
    with pytest.raises(UnsupportedModelFeature, match="flash-attn is not installed"):
        find_whole("flash-attn", torch.device("cuda"), torch.bfloat16)
    monkeypatch.setattr("sparse_attn.kernels.whole.find_spec", lambda name: object())
    with pytest.raises(UnsupportedModelFeature, match="not float32 on cpu; choose sdpa or flex"):
        find_whole("flash-attn", CPU, torch.float32)

"""The cost model against what was measured."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.bench.serving.scaling import predictions
from eval.scaling.cost import H200, LLAMA_8B, Machine, Shape, Work, decode, prefill, retrieval
from eval.scaling.fit import Measurement, committed, fit, summary


def test_sizes_of_a_known_model() -> None:
    assert LLAMA_8B.layer_weights + 2 * LLAMA_8B.head_weights == pytest.approx(8.03e9, rel=0.001)
    assert LLAMA_8B.kv_bytes_per_token == 128 * 1024  # as docs/operations.md says


@given(st.integers(1, 50_000), st.integers(0, 49_999))
def test_prefill_in_two_parts_is_the_same_work(tokens: int, cut: int) -> None:
    cut = min(cut, tokens - 1)
    shape = Shape("s", 2, 64, 4, 2, 16, 128, 100)
    whole, first, second = prefill(shape, tokens), prefill(shape, cut) if cut else Work(), prefill(shape, tokens, cut)
    assert first.attention_flops + second.attention_flops == pytest.approx(whole.attention_flops)
    logits = 2 * shape.head_weights * (1 if cut else 0)
    assert first.linear_flops + second.linear_flops == pytest.approx(whole.linear_flops + logits)


def test_a_tree_reads_what_one_row_reads() -> None:
    one, tree = decode(LLAMA_8B, 1000), decode(LLAMA_8B, 1000, nodes=16)
    assert tree.bytes == one.bytes
    assert tree.linear_flops == 16 * one.linear_flops
    assert decode(LLAMA_8B, 1000, visited=100).bytes < one.bytes
    assert retrieval(1000, together=10).bytes == retrieval(1000).bytes / 10


@given(st.floats(1e9, 1e13), st.floats(1e10, 1e15), st.floats(1e10, 1e15), st.floats(1e-5, 0.1))
def test_fit_finds_the_rates_that_made_the_times(
    bandwidth: float, linear: float, attention: float, step: float
) -> None:
    machine = Machine("made", bandwidth, linear, attention, step)
    works = [Work(1e9), Work(0, 1e12), Work(0, 0, 1e12), Work(0, 0, 0, 5), Work(1e9, 1e12, 1e12, 1)]
    found = fit([Measurement("", "", machine.seconds(work), work) for work in works])
    assert found.bytes_per_s == pytest.approx(bandwidth, rel=1e-3)
    assert found.linear_flops_per_s == pytest.approx(linear, rel=1e-3)
    assert found.attention_flops_per_s == pytest.approx(attention, rel=1e-3)
    assert found.step_s == pytest.approx(step, rel=1e-3)


def test_fit_refuses_what_it_cannot_tell_apart() -> None:
    with pytest.raises(ValueError, match="apart"):
        fit([Measurement("", "", 1.0, Work(1e9))])


def test_the_model_is_near_what_was_measured() -> None:
    """The bounds that docs/scaling.md states."""
    found = summary()
    assert found["median_error"] < 0.25
    assert found["largest_error"] < 0.50
    assert len(committed()) >= 10


def test_a_gpu_is_bound_by_reading_in_decode_and_by_operations_in_prefill() -> None:
    step, read = decode(LLAMA_8B, 131072), prefill(LLAMA_8B, 131072)
    assert step.bytes / H200.bytes_per_s > 0.9 * H200.seconds(step)
    assert read.bytes / H200.bytes_per_s < 0.1 * H200.seconds(read)


def test_predictions_for_a_gpu_say_that_they_are_predictions() -> None:
    rows = predictions()
    assert {row["state"] for row in rows} == {"not yet measured"}
    dense, sparse = (next(row for row in rows if what in row["what"]) for what in ("dense prefill of 131072", "0.1"))
    assert dense["seconds"] > 2 * sparse["seconds"]

"""The GPU check on a CPU: its sections run at toy sizes under the interpreter, its verdict follows what they find."""

import importlib
import importlib.util
import sys

import pytest
import torch

pytest.importorskip("triton")

from sparse_attn.kernels.triton.launch import INTERPRETED  # isort: skip

from eval.bench import gpu_check
from eval.bench.gpu import correct, invariant
from eval.bench.gpu.bare import CARRIED, carry, hidden
from eval.bench.gpu.engine import (
    SHAPES,
    TINY,
    Ceilings,
    batching,
    measure,
    overlap,
    pieced_steps,
    random_model,
    selecting_steps,
)
from eval.bench.gpu.kernels import Bench, Shape
from eval.bench.gpu.tape import few_programs, kernels_of_a_gpu
from eval.errors import EvalError


@pytest.fixture(scope="module")
def bench():
    if not INTERPRETED:
        pytest.skip("another test imported the kernels without the interpreter")
    bench = Bench(Shape(heads=4, kv_heads=2, dim=16, page=16), torch.device("cpu"), torch.float32, repeats=1)
    bench.ceilings(megabytes=1, side=64)
    return bench


def test_decode_rows_say_fraction_of_bandwidth(bench):
    rows = bench.decode([64], [1, 2])
    assert [(r["kv"], r["batch"], r["even"]) for r in rows] == [
        ("bf16", 1, True), ("int8", 1, True), ("bf16", 2, True), ("bf16", 2, False),
    ]  # fmt: skip
    assert all(0 < r["fraction_of_copy_bandwidth"] < 1 for r in rows)


def test_every_case_is_right_and_a_wrong_one_is_seen(bench, monkeypatch):
    few = [case for case in correct.cases(1024) if "tree of" in case.name or "chunk behind" in case.name]
    monkeypatch.setattr(correct, "cases", lambda scale: few)
    rows = correct.check(bench, 1024)
    assert len(rows) == 4
    assert all(row["right"] for row in rows)
    assert gpu_check.verdict({"correct": rows})
    rows[0]["right"] = False
    assert not gpu_check.verdict({"correct": rows})


def test_a_section_that_fails_fails_the_check_and_is_run_again(tmp_path, monkeypatch):
    calls = []

    def fail(check):
        calls.append("failed")
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(gpu_check.Check, "ceilings", fail)
    options = gpu_check.Options(only=("ceilings", "compiled"), output=tmp_path / "figures.json")
    for _ in range(2):
        figures = gpu_check.run(options)
    assert calls == ["failed", "failed"]
    assert figures["ceilings"] == {"error": "RuntimeError: no such kernel"}
    assert not gpu_check.verdict(figures)
    monkeypatch.setattr(gpu_check.Check, "ceilings", lambda check: {"copy_terabytes_per_s": 1.0})
    figures = gpu_check.run(options)
    assert gpu_check.verdict(figures)
    began = figures["section_s"]
    assert gpu_check.run(options)["section_s"] == began  # what is there is not run again
    with pytest.raises(EvalError, match="no section 'ceiling'"):
        gpu_check.run(gpu_check.Options(only=("ceiling",), output=tmp_path / "figures.json"))


def test_what_is_neither_there_nor_carried_is_missing(tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "rank_bm25", raising=False)
    with hidden():
        assert importlib.util.find_spec("rank_bm25") is None
        with pytest.raises(ModuleNotFoundError, match="rank_bm25"):
            importlib.import_module("rank_bm25")
    importlib.import_module("rank_bm25")
    with hidden():
        importlib.import_module("wave")  # of the standard library
    assert "structlog" in CARRIED
    with pytest.raises(EvalError, match="no wheels"):
        carry(tmp_path)


@pytest.mark.slow
def test_prefill_rows_have_index_kernel_and_density_apart(bench):
    (row,) = bench.sparse_prefill([256], "xattention:gate=0,block=32,stride=8,sink=16,local=32,p=0.5", chunk=32)
    assert 0 < row["density"] < 1
    assert 0 < row["index_share"] < 1
    (gated,) = bench.sparse_prefill([256], "xattention:gate=1024")
    assert gated["speedup"] == 1.0


def test_invariance_is_timed_and_its_bits_are_compared(bench):
    products = invariant.products(bench, [1, 65], 64)
    attention = invariant.attention(bench, [64], 20)
    assert all(row["same_bits"] for row in products + attention)
    assert len(attention) == 2
    assert {row["layer"] for row in products} == set(invariant.WEIGHTS)
    assert gpu_check.verdict({"invariant": {"products": products}})
    products[0]["same_bits"] = False
    assert not gpu_check.verdict({"invariant": {"products": products}})


@pytest.mark.slow
def test_steps_in_pieces_and_with_selection_inside_are_captured_and_timed():
    if not INTERPRETED:
        pytest.skip("another test imported the kernels without the interpreter")
    loaded = random_model("Qwen3-0.6B", torch.device("cpu"), torch.float32, **TINY)
    with kernels_of_a_gpu(), few_programs():
        (mixed,) = pieced_steps(loaded, 20, 2, 24)
        (selecting,) = selecting_steps(loaded, "quest:budget=384,sink=64,recent=64,dense_layers=1", 500, 1)
    assert (mixed["refused"], selecting["refused"]) == (None, None)
    assert (mixed["pieced"], mixed["kernels"]) == (2, ["triton+pieces"])
    assert (selecting["replayed"], selecting["kernels"]) == (4, ["triton"])


@pytest.mark.slow
def test_steps_that_are_read_late_and_batches_are_timed():
    loaded = random_model("Qwen3-0.6B", torch.device("cpu"), torch.float32, **TINY)
    rows = overlap(loaded, 2, 24, 6)
    assert [row["overlapped"] > 0 for row in rows] == [False, True, False, True]
    assert batching(loaded, 2, 24, 4)["same_answers"] == 2


def test_dense_prefill_is_measured_beside_what_is_installed(bench):
    (row,) = bench.dense_prefill([96])
    assert row["fraction_of_matmul"] > 0


@pytest.mark.slow
def test_selected_decode_trees_and_mixed_steps(bench):
    (row,) = bench.selected_decode(256, 64)
    assert row["pages"] == 16
    assert [row["rows"] for row in bench.tree(64, [6])] == [1, 6]
    (row,) = bench.mixed(20, 2, 64)
    assert row["chunk_ms"] > 0


def test_planted_attention_is_sparse_but_not_trivial(bench):
    q, k, _ = bench._planted(2048)
    weights = (torch.einsum("hd,nd->hn", q[-1], k[:, 0]) * bench.shape.scale).softmax(-1)
    mass, _ = weights.sort(descending=True)
    assert (mass[:, :600].sum(-1) > 0.9).all()
    assert (mass[:, :1].sum(-1) < 0.9).all()


@pytest.mark.slow
def test_failed_tests_are_a_failed_check(monkeypatch):
    monkeypatch.setattr(gpu_check, "KERNEL_TESTS", ("tests/sparse_attn/test_blocks.py", "-k", "nothing_has_this_name"))
    assert gpu_check.run_tests(interpreted=True)["failed"] == 1


def test_verdicts_are_read_from_the_summary():
    assert gpu_check._count("..\n3 failed, 12 passed in 4s\n", "failed") == 3
    assert gpu_check._count("..\n12 passed in 4s\n", "failed") == 0


@pytest.mark.parametrize(
    "name", ["Qwen3-0.6B", *(pytest.param(name, marks=pytest.mark.slow) for name in ("Llama-3.1-8B", "Qwen2.5-7B"))]
)
def test_the_engine_is_measured_end_to_end_on_random_weights(name):
    tiny = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 97, "head_dim": 16,
            "num_attention_heads": 4, "num_key_value_heads": 2}  # fmt: skip
    loaded = random_model(name, torch.device("cpu"), torch.float32, **tiny)
    assert loaded.model.config.model_type == SHAPES[name]["model_type"]
    rows = measure(loaded, Ceilings(1e10, 1e11), 200, ("dense", "streaming:sink=64,local=64,block=64"), new_tokens=4)
    assert [row["attention"].split(":")[0] for row in rows] == ["dense", "streaming"]
    assert rows[0]["ttft_speedup"] == 1.0
    assert all(row["ttft_s"] > 0 and row["times_limit"] > 0 for row in rows)
    assert rows[0]["prefill_density"] == 1.0
    assert rows[1]["prefill_density"] < 1.0

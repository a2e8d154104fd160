"""The GPU check on a CPU: its measurements run at toy sizes under the interpreter, its verdict follows the tests."""

import pytest
import torch

pytest.importorskip("triton")

from sparse_attn.kernels.triton.launch import INTERPRETED  # isort: skip

from eval.bench import gpu_check
from eval.bench.gpu_check import Bench, Shape
from eval.bench.gpu_engine import SHAPES, Ceilings, measure, random_model


@pytest.fixture(scope="module")
def bench():
    if not INTERPRETED:
        pytest.skip("another test imported the kernels without the interpreter")
    bench = Bench(Shape(heads=4, kv_heads=2, dim=16, page=16), torch.device("cpu"), torch.float32, repeats=1)
    bench.ceilings(megabytes=1, side=64)
    return bench


def test_decode_rows_say_fraction_of_bandwidth(bench):
    rows = bench.decode([64], [1, 2])
    assert [(r["kv"], r["batch"]) for r in rows] == [("bf16", 1), ("int8", 1), ("bf16", 2)]
    assert all(0 < r["fraction_of_copy_bandwidth"] < 1 for r in rows)


@pytest.mark.slow
def test_prefill_rows_have_index_kernel_and_density_apart(bench):
    (row,) = bench.sparse_prefill([256], "xattention:gate=0,block=32,stride=8,sink=16,local=32,p=0.5", chunk=32)
    assert 0 < row["density"] < 1
    assert 0 < row["index_share"] < 1
    (gated,) = bench.sparse_prefill([256], "xattention:gate=1024")
    assert gated["speedup"] == 1.0


def test_dense_prefill_is_measured_beside_what_is_installed(bench):
    (row,) = bench.dense_prefill([96])
    assert row["fraction_of_matmul"] > 0


@pytest.mark.slow
def test_selected_decode_and_trees(bench):
    (row,) = bench.selected_decode(256, 64)
    assert row["pages"] == 16
    (row,) = bench.tree(64, 6)
    assert row["times_one_row"] > 0


def test_planted_attention_is_sparse_but_not_trivial(bench):
    q, k, _ = bench._planted(2048)
    weights = (torch.einsum("hd,nd->hn", q[-1], k[:, 0]) * bench.shape.scale).softmax(-1)
    mass, _ = weights.sort(descending=True)
    assert (mass[:, :600].sum(-1) > 0.9).all()
    assert (mass[:, :1].sum(-1) < 0.9).all()


@pytest.mark.slow
def test_failed_tests_are_a_failed_check(monkeypatch):
    monkeypatch.setattr(gpu_check, "KERNEL_TESTS", ("tests/sparse_attn/test_blocks.py", "-k", "nothing_has_this_name"))
    assert gpu_check._run_tests(interpreted=True)["failed"] == 1


def test_verdicts_are_read_from_the_summary():
    assert gpu_check._count("..\n3 failed, 12 passed in 4s\n", "failed") == 3
    assert gpu_check._count("..\n12 passed in 4s\n", "failed") == 0


@pytest.mark.parametrize("name", ["Llama-3.1-8B", "Qwen2.5-7B", "Qwen3-0.6B"])
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

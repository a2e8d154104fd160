"""Every Triton kernel compiles for a Hopper GPU as the engine launches it: no GPU is needed for that."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")

ROOT = Path(__file__).resolve().parents[4]
MULTIPLYING = (
    "_in_pages_kernel", "_paged_kernel", "_ragged_kernel", "_antidiagonal_kernel", "_invariant_kernel",
    "_linear_kernel", "_skipping_kernel",
)  # fmt: skip
SHARED_LIMIT = 232448  # bytes of shared memory that one program may have on Hopper

pytestmark = pytest.mark.slow  # minutes with an empty cache of Triton's


def compile_kernels(*arguments: str) -> list[dict[str, Any]]:
    """In a process of its own: this one has Triton's interpreter."""
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    command = [sys.executable, "-m", "eval.bench.gpu.hopper", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def check(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        assert row["shared_bytes"] <= SHARED_LIMIT, row
        if row["kernel"] in MULTIPLYING:
            assert row["wgmma"] or row["mma"], row  # on the tensor cores


@pytest.mark.timeout(1800)
def test_kernels_of_an_8b_model_compile_without_spilling() -> None:
    rows = compile_kernels()
    check(rows)
    modes = {row["mode"] for row in rows}
    assert {"dense prefill", "decode", "tree of 64 nodes", "decode of chosen int8 pages", "page bounds"} <= modes
    assert {"prefill that skips", "tree of 64 nodes that skips"} <= modes
    assert {row["dtype"] for row in rows} == {"bfloat16", "float16"}
    for row in rows:
        hot = row["kernel"] in ("_paged_kernel", "_in_pages_kernel", "_linear_kernel")
        if hot and "prefill" in row["mode"] and "int8" not in row["mode"]:
            assert row["wgmma"], row
        if hot:
            assert row["stack_bytes"] <= 16, row  # a few bytes, once a program
            assert row["buffers"] >= 2, row  # the next tiles are on their way while these are multiplied


@pytest.mark.timeout(600)
def test_invariant_kernels_multiply_alike_for_any_number_of_rows() -> None:
    """The same instruction of the tensor cores in every mode, and nothing fused that might not be fused elsewhere."""
    rows = compile_kernels("--only", "invariant")
    for kernel, modes in (("_invariant_kernel", 4), ("_linear_kernel", 2)):
        for dtype in ("bfloat16", "float16"):
            own = [row for row in rows if row["kernel"] == kernel and row["dtype"] == dtype]
            assert len(own) == modes
            assert len({tuple(row["products"]) for row in own if "int8" not in row["mode"]}) == 1
            assert all(row["products"] and row["fused"] == 0 for row in own), own


@pytest.mark.timeout(3600)
def test_every_shape_and_every_configuration_of_tuning_compiles() -> None:
    rows = compile_kernels("--all")
    assert {row["model"] for row in rows} == {"Llama-3.1-8B", "Qwen2.5-7B", "Qwen3-0.6B", "reader"}
    check(rows)


START = """
import sys, time
from triton.compiler import compiler
from eval.bench.gpu.hopper import MODELS, compile_all
if sys.argv[1] == "carried":
    def fail(*_, **__):
        raise AssertionError("compiled anew")
    compiler.ASTSource.make_ir = fail
began = time.perf_counter()
rows = compile_all(MODELS[2:3])
print(len(rows), time.perf_counter() - began)
"""


@pytest.mark.timeout(900)
def test_with_a_carried_cache_a_start_compiles_nothing_and_takes_seconds(tmp_path: Path) -> None:
    """Every kernel of a model, the first configuration of each, from a cache that another machine may have filled."""
    cache = tmp_path / "made"
    figures = []
    for state in ("made", "carried"):
        environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(cache)}
        command = [sys.executable, "-c", START, state]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        figures.append(done.stdout.split())
        if state == "made":
            cache = cache.rename(tmp_path / "carried")
    assert figures[0][0] == figures[1][0]
    assert float(figures[1][1]) < 5

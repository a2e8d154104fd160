"""KV in bfloat16 and int8 under a float32 model on a CPU: fewer bytes, and no bit that depends on company."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from service.engine.async_engine import Generation
from service.engine.config import EngineConfig
from service.engine.engine import Engine
from service.engine.kv.layout import kv_dtype
from service.engine.loading.checkpoint import prepare
from service.engine.params import SamplingParams
from service.errors import InvalidRequest
from sparse_attn.kernels import select_kernels

from .conftest import generate, make_model

PART = [7, 11, 3, 42, 9, 5, 23, 8, 61, 30]
PROMPT = PART * 3 + [17, 2, 50, 33, 4] * 9 + PART * 4
OTHER = [(i * i) % 60 + 1 for i in range(90)]


def make_engine(family: str = "llama", kept: str = "bfloat16", **options: Any) -> Engine:
    model = make_model(family, dtype=torch.float32)
    given = {"dtype": "float32", "kv_dtype": kept, "kv_memory": 4 << 20, "page_size": 16, "step_tokens": 64}
    return Engine(prepare(family, model), EngineConfig(**{**given, **options}))


def run(engine: Engine, prompts: list[list[int]], **params: Any) -> list[tuple[list[int], list[float]]]:
    """Tokens and their log-probabilities, to the bit."""
    wanted = SamplingParams(**{"max_tokens": 24, "drafter": "none", "ignore_eos": True, "logprobs": 1, **params})
    return [_bits(result) for result in generate(engine, prompts, wanted)]


def _bits(result: Generation) -> tuple[list[int], list[float]]:
    assert result.logprobs is not None
    return result.token_ids, [own.logprob for own in result.logprobs]


needs_compiler = pytest.mark.skipif(
    not select_kernels(torch.device("cpu"), torch.float32).row_invariant, reason="no C++ compiler for the CPU kernels"
)


@needs_compiler
@pytest.mark.parametrize("kept", ["bfloat16", "int8"])
@pytest.mark.parametrize("family", ["llama", "gemma2", "qwen3"])
def test_company_chunks_drafts_and_the_prefix_cache_change_no_bit(family: str, kept: str) -> None:
    engine = make_engine(family, kept)
    [expected] = run(engine, [PROMPT])
    assert engine.stats()["kernels"] == ["cpu-c++"]
    assert run(engine, [PROMPT + expected[0][:1]])[0][0][:20] == expected[0][1:21]  # over pages of the first
    assert run(make_engine(family, kept, step_tokens=24, max_running=4), [PROMPT]) == [expected]
    assert run(make_engine(family, kept), [OTHER, PROMPT, OTHER[:40]])[1] == expected
    for drafter in ("suffix", "recycling:budget=6"):
        assert run(make_engine(family, kept), [PROMPT], drafter=drafter) == [expected]
    again = make_engine(family, kept)
    assert run(again, [PROMPT]) == run(again, [PROMPT]) == [expected]
    assert again.stats()["prefix_cache_hits"] > 0


def test_pages_take_half_the_bytes_and_cost_little() -> None:
    wide, narrow = make_engine(kept="float32"), make_engine()
    assert narrow.runner.pool.page_bytes * 2 == wide.runner.pool.page_bytes
    [(_, exact)], [(_, found)] = (run(engine, [PROMPT], max_tokens=1) for engine in (wide, narrow))
    assert exact != found
    assert found == pytest.approx(exact, abs=0.05)


def test_a_model_in_bfloat16_attends_by_the_kernels() -> None:
    model = make_model(dtype=torch.bfloat16)
    engine = Engine(prepare("llama", model), EngineConfig(dtype="bfloat16", kv_memory=4 << 20, page_size=16))
    assert engine.runner.pool.dtype == torch.bfloat16
    assert len(run(engine, [PROMPT])[0][0]) == 24
    assert engine.stats()["kernels"] == [select_kernels(torch.device("cpu"), torch.bfloat16).name]


def test_other_kv_on_a_gpu_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="KV in float32 beside a model in bfloat16 is for a CPU"):
        kv_dtype(EngineConfig(dtype="bfloat16", kv_dtype="float32", device="cuda"))

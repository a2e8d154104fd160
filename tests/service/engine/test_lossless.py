"""What "lossless" promises on a CPU, row by row of the table in docs/drafting.md: tokens, bits of log-probabilities."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from service.engine.async_engine import AsyncEngine
from service.engine.config import EngineConfig
from service.engine.engine import Engine
from service.engine.loading.checkpoint import LoadedModel, load_model, prepare
from service.engine.outputs import Generation
from service.engine.params import SamplingParams
from service.engine.runner.packed_layers import pack_model
from service.errors import InvalidRequest
from sparse_attn.kernels import select_kernels
from sparse_attn.kernels.cpu import features

from .conftest import make_model

pytestmark = pytest.mark.skipif(
    not select_kernels(torch.device("cpu"), torch.float32).row_invariant, reason="no C++ compiler for the CPU kernels"
)
needs_bfloat16 = pytest.mark.skipif(not features.multiplies_bfloat16(), reason="no products of bfloat16 here")
KINDS = [
    ("float32", None, {"batch_invariant": True}),
    pytest.param("bfloat16", "BF16", {}, marks=needs_bfloat16),
    pytest.param("bfloat16", "INT8", {}, marks=needs_bfloat16),
    ("float32", "INT8", {"kv_dtype": "int8"}),
]
PART = [7, 11, 3, 42, 9, 5, 23, 8, 61, 30]
LONG = [(i * i + i // 7) % 90 + 3 for i in range(640)]  # a prefill of more rows than any product is invariant for
OTHER = [(i * 31 + i * i // 5) % 90 + 3 for i in range(700)]
SAMPLING = [{}, {"temperature": 0.8, "seed": 5}]


def loaded_model(dtype: str, kind: str | None) -> LoadedModel:
    sizes = {"hidden_size": 64, "intermediate_size": 128, "max_position_embeddings": 2048}
    model = make_model(dtype=torch.float32, **sizes)
    if kind is not None:
        pack_model(model, kind, products="bfloat16" if dtype == "bfloat16" else "float32")
    return prepare("llama", model)


def engine_of(loaded: LoadedModel, dtype: str, **options: Any) -> Engine:
    given = {"dtype": dtype, "kv_memory": 16 << 20, "page_size": 16, "step_tokens": 2048, "max_running": 8}
    return Engine(loaded, EngineConfig(**{**given, **options}))


def bits(found: Generation) -> tuple[list[int], list[float]]:
    assert found.logprobs is not None
    assert found.error is None
    return found.token_ids, [own.logprob for own in found.logprobs]


def params(**more: Any) -> SamplingParams:
    return SamplingParams(**{"max_tokens": 20, "drafter": "none", "ignore_eos": True, "logprobs": 1, **more})


def answers(engine: Engine, prompts: list[list[int]], **more: Any) -> list[tuple[list[int], list[float]]]:
    with AsyncEngine(engine) as door:
        return [bits(found) for found in door.generate(prompts, params(**more))]


def beside(engine: Engine, prompt: list[int], *others: list[int], **more: Any) -> tuple[list[int], list[float]]:
    """The answer to a prompt in whose midst other prompts are read, in one step, and then answered too."""
    ids, logprobs = [], []
    own = engine.add_request(prompt, params(**more))
    for step in range(200):
        for other in others if step == 4 else ():
            engine.add_request(other, params(max_tokens=6))
        for output in engine.step():
            if output.request_id == own:
                ids += output.token_ids
                logprobs += [entry.logprob for entry in output.logprobs or []]
                if output.finished:
                    return ids, logprobs
    raise AssertionError("it does not end")


@pytest.mark.parametrize("sampling", SAMPLING, ids=["greedy", "sampled"])
@pytest.mark.parametrize(("dtype", "kind", "options"), KINDS)
def test_no_bit_depends_on_drafts_company_chunks_or_the_prefix_cache(
    dtype: str, kind: str | None, options: dict[str, Any], sampling: dict[str, Any]
) -> None:
    loaded = loaded_model(dtype, kind)
    prompt = LONG + PART * 3
    [expected] = answers(engine_of(loaded, dtype, **options), [prompt], **sampling)
    for drafter in ("auto", "suffix", "recycling:budget=16"):
        assert answers(engine_of(loaded, dtype, **options), [prompt], drafter=drafter, **sampling) == [expected]
    for step_tokens in (64, 500):
        assert answers(engine_of(loaded, dtype, step_tokens=step_tokens, **options), [prompt], **sampling) == [expected]
    assert answers(engine_of(loaded, dtype, **options), [OTHER, prompt, OTHER[:300]], **sampling)[1] == expected
    assert beside(engine_of(loaded, dtype, **options), prompt, OTHER, **sampling) == expected
    again = engine_of(loaded, dtype, **options)
    answers(again, [LONG], max_tokens=1)
    assert answers(again, [prompt], **sampling) == [expected]
    assert again.stats()["prefix_cache_hits"] == 640


@pytest.mark.parametrize("sampling", SAMPLING, ids=["greedy", "sampled"])
def test_in_float32_decoding_depends_on_no_company_and_no_draft(sampling: dict[str, Any]) -> None:
    """Without batch_invariant: prompts of more than 256 rows go by the library, the rows decoded beside them do not."""
    loaded = loaded_model("float32", None)
    prompt = PART * 5  # fewer rows than that
    [expected] = answers(engine_of(loaded, "float32"), [prompt], **sampling)
    assert beside(engine_of(loaded, "float32"), prompt, OTHER, **sampling) == expected
    for drafter in ("auto", "suffix:budget=64", "recycling:budget=64"):
        assert answers(engine_of(loaded, "float32"), [prompt], drafter=drafter, **sampling) == [expected]
    many = engine_of(loaded, "float32", max_running=300, kv_memory=64 << 20)
    assert beside(many, prompt, *([3 + i % 90, i % 7 + 3] for i in range(299)), **sampling) == expected
    [long] = answers(engine_of(loaded, "float32"), [LONG], **sampling)
    for drafter in ("auto", "recycling:budget=64"):
        assert answers(engine_of(loaded, "float32"), [LONG], drafter=drafter, **sampling) == [long]


def test_in_float32_tokens_stay_though_bits_of_long_prompts_do_not() -> None:
    loaded = loaded_model("float32", None)
    [expected] = answers(engine_of(loaded, "float32"), [LONG])
    [found] = answers(engine_of(loaded, "float32", step_tokens=64), [LONG])
    assert found[0] == expected[0]
    assert found[1] == pytest.approx(expected[1], abs=1e-4)


@pytest.mark.parametrize("options", [{"dtype": "float64"}, {"dtype": "bfloat16"}])
def test_batch_invariance_is_not_promised_where_a_library_multiplies(options: dict[str, Any]) -> None:
    loaded = prepare("llama", make_model(dtype=getattr(torch, options["dtype"])))
    with pytest.raises(InvalidRequest, match="or for a CPU with a C"):
        Engine(loaded, EngineConfig(**options, batch_invariant=True, kv_memory=4 << 20))


@pytest.mark.slow
@needs_bfloat16
@pytest.mark.parametrize("sampling", SAMPLING, ids=["greedy", "sampled"])
@pytest.mark.parametrize(("dtype", "options"), [("bfloat16", {}), ("float32", {"batch_invariant": True})])
def test_of_a_real_model(dtype: str, options: dict[str, Any], sampling: dict[str, Any]) -> None:
    """SmolLM2 out of its package, over a page of text."""
    loaded = load_model("smollm2", dtype, max_model_len=4096)
    assert loaded.tokenizer is not None
    text = Path(__file__).parents[3] / "docs" / "handbook" / "07-retrieval.md"
    prompt = loaded.tokenizer.encode(text.read_text(encoding="utf-8"))[:900]
    given = {"page_size": 64, "kv_memory": 256 << 20, **options}
    [expected] = answers(engine_of(loaded, dtype, **given), [prompt], max_tokens=48, **sampling)
    drafted = answers(engine_of(loaded, dtype, **given), [prompt], max_tokens=48, drafter="auto", **sampling)
    assert drafted == [expected]
    chunked = answers(engine_of(loaded, dtype, step_tokens=128, **given), [prompt], max_tokens=48, **sampling)
    assert chunked == [expected]
    assert beside(engine_of(loaded, dtype, **given), prompt, OTHER, max_tokens=48, **sampling) == expected

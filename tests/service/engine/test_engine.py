"""The engine under pressure: shared prefixes, too few pages, failing forwards, aborts, stops, sampling."""

from __future__ import annotations

import functools
import random
from typing import Any

import pytest

from service.engine.engine import Engine
from service.engine.params import SamplingParams
from service.errors import InvalidRequest

from .conftest import generate, make_engine


def shared_prefix_prompts(count: int = 8) -> list[list[int]]:
    rng = random.Random(5)
    heads = [[rng.randrange(3, 97) for _ in range(50)] for _ in range(2)]
    return [heads[i % 2] + [rng.randrange(3, 97) for _ in range(rng.randrange(1, 30))] for i in range(count)]


def params(i: int, **changes: Any) -> SamplingParams:
    return SamplingParams(
        **{"max_tokens": 12, "temperature": [0.0, 0.9][i % 2], "seed": i, "ignore_eos": True, **changes}
    )


@functools.cache
def alone() -> list[list[int]]:
    """Each of `shared_prefix_prompts` by itself on an engine with room and without a prefix cache."""
    return [
        generate(make_engine(prefix_cache=False), [prompt], params(i))[0].token_ids
        for i, prompt in enumerate(shared_prefix_prompts())
    ]


@pytest.mark.parametrize("order_seed", range(4))
def test_shuffled_requests_in_a_tenth_of_the_pages_give_the_tokens_of_each_alone(order_seed: int) -> None:
    prompts = shared_prefix_prompts()
    expected = alone()
    engine = make_engine(pages=7, step_tokens=48)
    order = list(range(len(prompts)))
    random.Random(order_seed).shuffle(order)
    results = generate(engine, [prompts[i] for i in order], [params(i) for i in order])
    assert [r.token_ids for r in results] == [expected[i] for i in order]
    assert engine.scheduler.num_preemptions > 0, "the pool was meant to be too small"
    engine.check_integrity()
    assert engine.blocks.num_owned == 0


def test_the_second_question_on_a_document_reads_its_pages() -> None:
    engine = make_engine()
    head = list(range(3, 83))
    first = generate(engine, [head + [5]], params(0))[0]
    second = generate(engine, [head + [6]], params(0))[0]
    assert (first.stats["cached_tokens"], second.stats["cached_tokens"]) == (0, 80)
    assert first.stats["miss_reason"] == "never seen at token 0"
    assert second.token_ids == generate(make_engine(), [head + [6]], params(0))[0].token_ids


@pytest.mark.parametrize("failing_step", range(8))
def test_a_failing_forward_fails_its_requests_and_nothing_else(failing_step: int) -> None:
    error = (RuntimeError("broken"), MemoryError("out of memory"))[failing_step % 2]
    engine = make_engine(pages=12, step_tokens=32)
    prompts = shared_prefix_prompts(4)
    run, calls = engine.runner.run, iter(range(10_000))

    def fail_once(slices: Any) -> Any:
        if next(calls) == failing_step:
            raise error
        return run(slices)

    engine.runner.run = fail_once  # type: ignore[method-assign]
    results = generate(engine, prompts, [params(i) for i in range(4)])
    assert {r.finish_reason for r in results} <= {"length", "error"}
    assert any(r.finish_reason == "error" for r in results)
    engine.check_integrity()
    assert engine.blocks.num_owned == 0
    expected = alone()[:4]
    again = generate(engine, prompts, [params(i) for i in range(4)])
    assert [r.token_ids for r in again] == expected, "a failed step left something behind in the pages"


def test_pages_are_back_when_abort_returns() -> None:
    engine = make_engine()
    ids = [engine.add_request(p, params(i)) for i, p in enumerate(shared_prefix_prompts(3))]
    engine.step()
    assert engine.blocks.num_owned > 0
    for request_id in ids:
        engine.abort(request_id)
    assert engine.blocks.num_owned == 0
    outputs = engine.step()
    assert {(o.request_id, o.finish_reason) for o in outputs} == {(i, "abort") for i in ids}
    assert not engine.has_work


def test_sampling_depends_on_the_seed_alone() -> None:
    prompt = shared_prefix_prompts(1)[0]
    hot = SamplingParams(max_tokens=20, temperature=1.0, seed=7, ignore_eos=True)
    first = generate(make_engine(), [prompt], hot)[0].token_ids
    beside_others = generate(make_engine(), [prompt, *shared_prefix_prompts(3)], [hot, *map(params, range(3))])
    assert beside_others[0].token_ids == first
    other = SamplingParams(max_tokens=20, temperature=1.0, seed=8, ignore_eos=True)
    assert generate(make_engine(), [prompt], other)[0].token_ids != first


def test_logprobs_are_those_of_the_model() -> None:
    engine = make_engine()
    prompt = shared_prefix_prompts(1)[0]
    result = generate(engine, [prompt], SamplingParams(max_tokens=5, logprobs=3, ignore_eos=True))[0]
    assert result.logprobs is not None
    assert len(result.logprobs) == 5
    for token, entry in zip(result.token_ids, result.logprobs, strict=True):
        assert entry.token_id == token
        assert entry.top[0] == (token, pytest.approx(entry.logprob)), "greedy takes the likeliest"
        assert [p for _, p in entry.top] == sorted((p for _, p in entry.top), reverse=True)


def test_stop_token_ids_end_the_sequence_with_that_token(engine: Engine) -> None:
    prompt = shared_prefix_prompts(1)[0]
    free = generate(engine, [prompt], params(0))[0].token_ids
    stop = free[4]
    cut = generate(engine, [prompt], params(0, stop_token_ids=(stop,)))[0]
    assert cut.token_ids == free[: free.index(stop) + 1]
    assert cut.finish_reason == "stop"


@pytest.mark.parametrize(
    "changes",
    [
        {"max_tokens": 0},
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"top_p": 0.0},
        {"top_k": -1},
        {"min_p": 1.5},
        {"frequency_penalty": 2.5},
        {"presence_penalty": float("nan")},
        {"repetition_penalty": 0.0},
        {"repetition_penalty": 5e-324},
        {"logit_bias": ((-1, 0.5),)},
        {"logit_bias": ((1, 101.0),)},
        {"logit_bias": ((1, 0.5), (1, 0.6))},
        {"seed": -1},
        {"logprobs": 21},
        {"stop": ("",)},
        {"stop": ("x" * 10_000,)},
    ],
)
def test_bad_parameters_are_refused_by_name(changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest) as caught:
        SamplingParams(**changes)
    assert caught.value.param == next(iter(changes))

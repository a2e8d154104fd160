"""How a checkpoint's makers sample, and what a request leaves to them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from transformers import GenerationConfig

from service.answering.question import Sampling, for_answers
from service.api.openai.schemas import CompletionRequest
from service.engine.loading.sampling_defaults import SamplingDefaults
from service.engine.params import SamplingParams
from service.errors import ModelError

MAKERS = SamplingDefaults(temperature=0.7, top_p=0.8, top_k=20, repetition_penalty=1.1)


def params(given: dict[str, Any], makers: SamplingDefaults = MAKERS) -> SamplingParams:
    return SamplingParams(**makers.fill(given))


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({"temperature": 0.6, "top_p": 0.9, "min_p": 0.05}, {"temperature": 0.6, "top_p": 0.9, "min_p": 0.05}),
        ({"do_sample": True, "top_k": 40}, {"temperature": 1.0, "top_k": 40}),
        ({"do_sample": False, "temperature": 0.6}, {"temperature": 0.0}),
        ({}, {}),
    ],
)
def test_what_a_checkpoint_says(said: dict[str, Any], expected: dict[str, Any]) -> None:
    found = SamplingDefaults.of("m", GenerationConfig(**said)).as_dict()
    assert {name: pytest.approx(value) for name, value in found.items()} == expected


@pytest.mark.parametrize("said", [{"temperature": "hot"}, {"top_p": 0.0}, {"repetition_penalty": 101}, {"min_p": 2}])
def test_a_value_that_is_none_is_the_model_s_fault(said: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match=next(iter(said))):
        SamplingDefaults.of("m", SimpleNamespace(**said))


def test_a_request_goes_before_the_makers() -> None:
    found = params({"temperature": None, "top_k": 5})
    assert (found.temperature, found.top_p, found.top_k, found.repetition_penalty) == (0.7, 0.8, 5, 1.1)
    assert found.described()["from_model"] == ["temperature", "top_p", "repetition_penalty"]


def test_temperature_zero_is_greedy_and_nothing_else() -> None:
    found = params({"temperature": 0, "top_p": None})
    assert found.described() == {
        "temperature": 0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "from_model": [],
    }  # fmt: skip
    assert not found.adjusted
    assert params({"temperature": 0, "repetition_penalty": 1.3}).repetition_penalty == 1.3


def test_answers_from_documents_are_greedy_unless_asked() -> None:
    assert not params(for_answers({"temperature": None})).adjusted
    assert params(for_answers({"temperature": None})).temperature == 0
    warm = params(for_answers({"temperature": 0.5}))
    assert (warm.temperature, warm.top_p, warm.repetition_penalty) == (0.5, 0.8, 1.0)
    assert Sampling(temperature=0.5).params(10, MAKERS) == SamplingParams(
        max_tokens=10, temperature=0.5, top_p=0.8, top_k=20, from_model=("top_p", "top_k")
    )
    assert Sampling().params(10, MAKERS) == SamplingParams(max_tokens=10)


def test_openai_routes_take_the_makers_and_else_openai_s_temperature() -> None:
    asked = CompletionRequest(model="m", prompt="x", seed=1, top_k=-1)
    found = asked.sampling(0, 5, None, MAKERS)
    assert (found.temperature, found.top_p, found.top_k, found.repetition_penalty) == (0.7, 0.8, 0, 1.1)
    assert asked.sampling(0, 5, None, SamplingDefaults()).temperature == 1.0
    assert asked.sampling(0, 5, None, MAKERS, answering=True).temperature == 0.0

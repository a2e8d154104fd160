"""Requests whose tokens are chosen from a mixture: guessed on, parked, cut back, and never in the way of others."""

from __future__ import annotations

import random
import threading
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from service.engine.engine import Engine
from service.engine.outputs import TokenOutput
from service.engine.params import SamplingParams
from service.engine.step import Slice

from .conftest import make_engine

DENSE = {"attention": "dense", "drafter": "none", "ignore_eos": True}


class Skewed:
    """The target's greedy choice unless the hidden state says otherwise; guesses are right, wrong or none by a coin."""

    def __init__(self, seed: int, stride: int) -> None:
        self._rng = random.Random(seed)
        self._stride = stride
        self._true: list[int] = []
        self._guesses: list[int | None] = []
        self.looking_up: threading.Event | None = None
        self.rounds = self.wrong = 0

    def open(self, *_: Any) -> Skewed:
        return self

    def guess(self, logits: Tensor, hidden: Tensor, position: int) -> int | None:
        first, second = torch.topk(logits, 2).indices.tolist()
        self._true.append(second if float(hidden.sum()) > 0 and position % 3 else first)
        token = self._true[-1] if self._rng.random() < 0.8 else self._rng.randrange(3, 97)
        self._guesses.append(token if len(self._guesses) + 1 < self._stride else None)
        return self._guesses[-1]

    def look_up(self) -> None:
        if self.looking_up is not None:
            self.looking_up.wait(10)

    def settle(self) -> list[int]:
        right = next((i for i, pair in enumerate(zip(self._true, self._guesses, strict=True)) if len({*pair}) > 1))
        tokens = self._true[: right + 1]
        self.rounds += 1
        self.wrong += right + 1 < len(self._true)
        self._true, self._guesses = [], []
        return tokens

    def stats(self) -> dict[str, Any]:
        return {"skewed": {"rounds": self.rounds}}


def run(engine: Engine, ids: Sequence[str]) -> dict[str, list[TokenOutput]]:
    """Step until these requests have ended; pages are in order after every step."""
    outputs: dict[str, list[TokenOutput]] = {request_id: [] for request_id in ids}
    for _ in range(3000):
        for output in engine.step():
            outputs[output.request_id].append(output)
        engine.check_integrity()
        if all(o and o[-1].finished for o in outputs.values()):
            return outputs
    raise AssertionError("the requests do not end")


def tokens(outputs: Sequence[TokenOutput]) -> list[int]:
    return [token for output in outputs for token in output.token_ids]


def prompt(seed: int, length: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(3, 97) for _ in range(length)]


def alone(prompt_ids: list[int], max_tokens: int = 40) -> list[int]:
    """One row a round: the sequential loop."""
    engine = make_engine()
    params = SamplingParams(max_tokens=max_tokens, **DENSE)
    name = engine.add_request(prompt_ids, params, mixture=Skewed(0, 1))
    return tokens(run(engine, [name])[name])


PROMPTS = [prompt(1, 70), prompt(1, 70) + [5, 6], prompt(2, 33)]


@pytest.fixture(scope="module")
def expected() -> list[list[int]]:
    """Each alone, and plain decoding of another prompt."""
    plain = make_engine()
    other = plain.add_request(prompt(3, 50), SamplingParams(max_tokens=40, **DENSE))
    return [*map(alone, PROMPTS), tokens(run(plain, [other])[other])]


@pytest.mark.parametrize("stride", [2, 5, 24])
@pytest.mark.parametrize("pages", [64, 13])
def test_guesses_and_company_change_no_token(stride: int, pages: int, expected: list[list[int]]) -> None:
    """Beside others, with guesses that reach over pages, in a pool that holds not all of them."""
    engine = make_engine(pages=pages)
    params = SamplingParams(max_tokens=40, **DENSE)
    mixtures = [Skewed(seed, stride) for seed in range(3)]
    names = [engine.add_request(ids, params, mixture=m) for ids, m in zip(PROMPTS, mixtures, strict=True)]
    names.append(engine.add_request(prompt(3, 50), params))
    outputs = run(engine, names)
    assert [tokens(outputs[name]) for name in names] == expected
    assert sum(mixture.wrong for mixture in mixtures) > 3
    assert (engine.scheduler.num_preemptions > 0) == (pages < 64)
    assert outputs[names[0]][-1].stats["skewed"]["rounds"] == mixtures[0].rounds
    assert outputs[names[0]][-1].stats["output_tokens"] == 40
    assert engine.blocks.num_owned == 0


def test_what_is_guessed_is_found_by_nobody() -> None:
    """Pages of guesses are not in the prefix cache: they may be cut off and written again."""
    engine = make_engine()
    guessing = Skewed(0, 40)
    guessing._rng.random = lambda: 1.0  # type: ignore[method-assign]  # wrong, all of them
    name = engine.add_request(prompt(1, 60), SamplingParams(max_tokens=40, **DENSE), mixture=guessing)
    request = engine._requests[name]
    while request.num_provisional < 35:
        engine.step()
    assert engine.blocks.match([*request.token_ids, 0], request.digests).pages == request.pages[:3]
    engine.blocks.release(request.pages[:3])
    engine.abort(name)
    engine.check_integrity()
    assert engine.blocks.num_owned == 0


def test_a_parked_request_stops_nobody_and_can_be_aborted() -> None:
    engine = make_engine()
    waiting = Skewed(0, 2)
    waiting.looking_up = threading.Event()
    params = SamplingParams(max_tokens=20, **DENSE)
    parked = engine.add_request(prompt(1, 20), params, mixture=waiting)
    other = engine.add_request(prompt(2, 20), params)
    outputs = run(engine, [other])
    assert len(tokens(outputs[other])) == 20
    assert engine._requests[parked].parked
    assert engine.has_work
    assert engine.step() == []
    engine.abort(parked)
    waiting.looking_up.set()
    (ended,) = engine.step()
    assert (ended.finish_reason, ended.stats["output_tokens"]) == ("abort", 0)
    engine.check_integrity()
    assert engine.blocks.num_owned == 0
    engine.lookups.wait(5)
    assert engine.step() == []


@pytest.mark.parametrize("where", ["guess", "look_up", "settle"])
def test_a_mixture_that_fails_fails_its_request_alone(where: str) -> None:
    engine = make_engine()
    failing = Skewed(0, 3)
    setattr(failing, where, lambda *_: 1 / 0)
    params = SamplingParams(max_tokens=8, **DENSE)
    bad = engine.add_request(prompt(1, 20), params, mixture=failing)
    good = engine.add_request(prompt(2, 20), params)
    outputs = run(engine, [bad, good])
    assert outputs[bad][-1].finish_reason == "error"
    assert "ZeroDivisionError" in outputs[bad][-1].error
    assert len(tokens(outputs[good])) == 8


def test_a_long_prompt_with_a_mixture_is_read_in_the_steps_of_others() -> None:
    """In every step in which it is read another client's row runs, and no step is longer than its budget."""
    engine = make_engine(pages=128)
    steps: list[list[Slice]] = []
    forward = engine.runner.run
    engine.runner.run = lambda slices: steps.append(list(slices)) or forward(slices)  # type: ignore[method-assign, func-returns-value]
    client = engine.add_request(prompt(1, 20), SamplingParams(max_tokens=60, **DENSE))
    while not engine._requests[client].num_output:
        engine.step()
    steps.clear()
    mixed = engine.add_request(prompt(2, 400), SamplingParams(max_tokens=20, **DENSE), mixture=Skewed(0, 4))
    run(engine, [client, mixed])
    reading = [step for step in steps if any(p.request.id == mixed and len(p.token_ids) > 1 for p in step)]
    assert len(reading) >= 400 // 64
    assert all(any(p.request.id == client for p in step) for step in reading)
    assert max(sum(p.num_rows for p in step) for step in steps) <= 64

"""A failure belongs to one request: it ends with an error, and the others get the tokens that they would have got."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from drafters.base import Drafter, RequestState
from drafters.calibration import Calibration
from drafters.tracked import TrackedDrafter
from drafters.tree import DraftTree
from service.engine.engine import Engine
from service.engine.finish import StopChecker
from service.engine.params import SamplingParams
from service.engine.request import Request

from .conftest import SIZES, make_engine

VICTIM = "r2"
LATER = 4  # the call that fails: by then the others have tokens of their own


class Lossy(Drafter):
    """A drafter that has to see every step, and fails in one of its methods."""

    name = "lossy"
    lossy = True

    def __init__(self, stage: str) -> None:
        self.stage, self.calls = stage, 0

    def _count(self, stage: str) -> None:
        self.calls += stage == self.stage
        if self.calls == LATER:
            raise ValueError("a bug of the drafter")

    def propose(self, state: RequestState, budget: int) -> DraftTree:
        self._count("propose")
        return DraftTree.chain([5, 6])

    def adjust(self, state: RequestState, tree: DraftTree, logits: Tensor) -> Tensor:
        self._count("adjust")
        return logits

    def observe(self, *_: Any) -> None:
        self._count("observe")


class Judging(Lossy):
    """As above, with a rule of its own."""

    judges = True

    def verify(self, *_: Any) -> Any:
        raise ValueError("a bug of the drafter")


class BrokenText:
    """A detokenizer that meets a token it cannot decode."""

    stopped, stopped_by = False, None

    def __init__(self) -> None:
        self.calls = 0

    def push(self, token_ids: list[int], *, last: bool = False) -> str:
        self.calls += 1
        if self.calls == LATER:
            raise OverflowError("out of range integral type conversion attempted")
        return "x"


def lossy(stage: str) -> Callable[[Engine, Request], None]:
    def give(engine: Engine, request: Request) -> None:
        inner = Judging(stage) if stage == "verify" else Lossy(stage)
        request.draft_budget = 4
        engine.drafting._requests[request.id].drafter = TrackedDrafter(inner, Calibration(), SIZES["vocab_size"], 4)

    return give


def unusable(value: float) -> Callable[[Engine, Request], None]:
    """All logits of the victim, or with NaN a single one of them, from one step on."""

    def give(engine: Engine, request: Request) -> None:
        run = engine.runner.run

        @torch.inference_mode()
        def spoilt(slices: Any) -> Any:
            forward = run(slices)
            for seq, row in zip(slices, forward.first_row, strict=True):
                if seq.request is request and seq.samples and request.num_output == LATER:
                    forward.logits[row, 7 if value != value else slice(None)] = value
            return forward

        engine.runner.run = spoilt  # type: ignore[method-assign]

    return give


def constraint(engine: Engine, request: Request) -> None:
    def stuck(logits: Tensor, tokens: list[int], tree: DraftTree) -> Tensor:
        if request.num_output == LATER:
            raise RuntimeError("the output cannot be constrained further")
        return logits

    request.logits_processor = stuck  # type: ignore[assignment]


def detokenizer(engine: Engine, request: Request) -> None:
    request.stop_checker = StopChecker(frozenset(), request.params.max_tokens, BrokenText())  # type: ignore[arg-type]


FAULTS = {
    "propose": (lossy("propose"), "a bug of the drafter"),
    "adjust": (lossy("adjust"), "a bug of the drafter"),
    "verify": (lossy("verify"), "a bug of the drafter"),
    "observe": (lossy("observe"), "a bug of the drafter"),
    "NaN": (unusable(float("nan")), "no token can be chosen from position"),
    "-inf": (unusable(float("-inf")), "no token can be chosen from position"),
    "inf": (unusable(float("inf")), "no token can be chosen from position"),
    "constraint": (constraint, "cannot be constrained further"),
    "detokenizer": (detokenizer, "out of range"),
}


def run(engine: Engine, prompts: list[list[int]], sampled: dict[str, Any], fault: Any = None) -> dict[str, list[Any]]:
    """The outputs of each request; ``fault`` is given to the victim."""
    for i, prompt in enumerate(prompts):
        params = SamplingParams(max_tokens=12, seed=i, ignore_eos=True, drafter="suffix", **sampled)
        engine.add_request(prompt, params, f"r{i}")
    if fault is not None:
        fault(engine, engine._requests[VICTIM])
    outputs: dict[str, list[Any]] = {}
    while engine.has_work:
        for output in engine.step():
            outputs.setdefault(output.request_id, []).append(output)
            assert all(token >= 0 for token in output.token_ids)
    engine.check_integrity()
    assert engine.blocks.num_owned == 0
    return outputs


def tokens(outputs: list[Any]) -> list[int]:
    return [token for output in outputs for token in output.token_ids]


def prompts() -> list[list[int]]:
    rng = random.Random(3)
    return [[rng.randrange(3, 97) for _ in range(n)] for n in (30, 17, 44, 70)]


SAMPLED: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampled": {"temperature": 0.9},
    "cut": {"temperature": 0.9, "top_k": 20},
}


@functools.cache
def sound(how: str) -> dict[str, list[Any]]:
    """The outputs where nothing fails."""
    return run(make_engine(), prompts(), SAMPLED[how])


@pytest.mark.parametrize("how", SAMPLED)
@pytest.mark.parametrize("name", FAULTS)
def test_one_request_fails_and_the_others_go_on(name: str, how: str) -> None:
    fault, words = FAULTS[name]
    expected, sampled = sound(how), SAMPLED[how]
    outputs = run(make_engine(), prompts(), sampled, fault)
    last = outputs[VICTIM][-1]
    assert (last.finished, last.finish_reason) == (True, "error")
    assert words in last.error
    assert tokens(outputs[VICTIM]) == tokens(expected[VICTIM])[: len(tokens(outputs[VICTIM]))]
    for other in expected.keys() - {VICTIM}:
        assert tokens(outputs[other]) == tokens(expected[other])
        assert outputs[other][-1].finish_reason == "length"


def test_a_request_that_can_have_no_pages_fails_when_nobody_else_could_give_them() -> None:
    expected = run(make_engine(pages=16), prompts(), {})
    engine = make_engine(pages=16)
    held = engine.blocks.allocate(11)  # five are left: the fourth request needs six in the end
    outputs: dict[str, list[Any]] = {}
    for i, prompt in enumerate(prompts()):
        engine.add_request(prompt, SamplingParams(max_tokens=12, seed=i, ignore_eos=True, drafter="suffix"), f"r{i}")
    while engine.has_work:
        for output in engine.step():
            outputs.setdefault(output.request_id, []).append(output)
    assert "pages wanted" in outputs["r3"][-1].error
    for other in ("r0", "r1", "r2"):
        assert tokens(outputs[other]) == tokens(expected[other])
    engine.blocks.release(held)
    engine.check_integrity()
    assert engine.blocks.num_owned == 0

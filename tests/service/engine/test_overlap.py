"""Steps that are read one step late: the same tokens, and nothing is read before the next forward is launched."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from service.engine.engine import Engine
from service.engine.overlap import Flight
from service.engine.params import SamplingParams
from service.engine.runner.cuda_graphs import Bucket, GraphedRunner, run_eagerly

from .conftest import generate, make_engine

PROMPTS = [[(5 * i + 7 * n) % 90 + 3 for i in range(9 + 13 * n)] for n in range(4)]


def params(n: int, **more: Any) -> SamplingParams:
    kinds: list[dict[str, Any]] = [{}, {"temperature": 0.9}, {"temperature": 0.8, "top_p": 0.9}, {"temperature": 1.1}]
    return SamplingParams(**{"max_tokens": 17 + 9 * n, "drafter": "none", "seed": n, **kinds[n % 4], **more})


def overlapping(**options: Any) -> Engine:
    engine = make_engine(**options)
    engine.overlaps = True
    return engine


def drained(engine: Engine, at: dict[int, Any] | None = None) -> dict[str, list[int]]:
    """The tokens of each request; ``at`` is done before steps of these numbers."""
    found: dict[str, list[int]] = {}
    for step in range(400):
        for do in (at or {}).get(step, []):
            do(engine)
        for output in engine.step():
            found.setdefault(output.request_id, []).extend(output.token_ids)
        engine.check_integrity()
        if not engine.has_work:
            return found
    raise AssertionError("it does not end")


@pytest.mark.parametrize("graphed", [False, True])
def test_tokens_ends_and_pages_are_those_of_steps_that_are_read_at_once(graphed: bool) -> None:
    """Answers end by an id that the model chooses and by length; one joins and one is aborted meanwhile."""
    plain = make_engine()
    free = generate(plain, PROMPTS, [params(n, ignore_eos=True) for n in range(4)])
    stops = [{"stop_token_ids": (free[0].token_ids[5],)}, {}, {"stop_token_ids": (free[2].token_ids[11],)}, {}]

    def add(n: int) -> Any:
        return lambda engine: engine.add_request(PROMPTS[n], params(n, ignore_eos=True, **stops[n]), f"r{n}")

    found = []
    for engine in (make_engine(), overlapping()):
        if graphed:
            buckets = [Bucket(1, 1), Bucket(4, 4)]
            engine.runner = GraphedRunner(engine.loaded.model, engine.runner.pool, buckets, 8, run_eagerly)
        found.append(drained(engine, {0: [add(0), add(1), add(2)], 9: [add(3)]}))
        assert engine.blocks.num_owned == 0
    assert found[0] == found[1]
    assert found[1]["r0"] == free[0].token_ids[: free[0].token_ids.index(free[0].token_ids[5]) + 1]
    assert len(found[1]["r3"]) == 44
    assert engine.stats()["overlap"]["overlapped"] > 30


def test_a_request_that_is_aborted_while_its_row_is_under_way_is_dropped() -> None:
    engine = overlapping()
    expected = generate(make_engine(), PROMPTS[:2], [params(n, ignore_eos=True) for n in range(2)])
    for n in range(2):
        engine.add_request(PROMPTS[n], params(n, ignore_eos=True), f"r{n}")
    found = drained(engine, {8: [lambda engine: engine.abort("r0")]})
    assert found["r1"] == expected[1].token_ids
    assert found["r0"] == expected[0].token_ids[: len(found["r0"])]
    assert 0 < len(found["r0"]) < 17
    assert engine.blocks.num_owned == 0


def test_the_next_forward_is_launched_before_tokens_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    engine = overlapping()
    run, verdicts = engine.runner.run, Flight.verdicts

    def launched(slices: Any, pending: Tensor | None = None) -> Any:
        order.append("launch" if len(slices[0].token_ids) == 1 else "prompt")
        if pending is not None:
            assert slices[0].token_ids == [0]  # nobody knows it
        return run(slices, pending)

    def read(flight: Flight) -> Any:
        order.append("read")
        return verdicts(flight)

    monkeypatch.setattr(engine.runner, "run", launched)
    monkeypatch.setattr(Flight, "verdicts", read)
    engine.add_request(PROMPTS[0], params(0, max_tokens=5))
    drained(engine)
    assert order == ["prompt", "launch", "launch", "read", "launch", "read", "launch", "read", "read"]


def test_what_must_know_its_token_is_read_at_once_and_said() -> None:
    engine = overlapping()
    kinds: dict[str, SamplingParams] = {
        "drafts": params(0, drafter="prompt_lookup"),
        "logprobs": params(0, logprobs=1),
        "constraint": params(0, repetition_penalty=1.3),
        "policy": params(0, attention="streaming:sink=16,local=32,block=16"),
    }
    expected = make_engine()
    for reason, own in kinds.items():
        before = dict(engine.overlap.apart)
        assert generate(engine, PROMPTS[1:2], own)[0].token_ids == generate(expected, PROMPTS[1:2], own)[0].token_ids
        assert engine.overlap.apart[reason] > before.get(reason, 0)
        assert engine.overlap.overlapped == 0


def test_where_pages_are_wanting_nobody_is_preempted_ahead_of_time() -> None:
    prompts = [[(3 * i + n) % 90 + 3 for i in range(30)] for n in range(3)]
    own = [params(0, max_tokens=40, ignore_eos=True)] * 3
    expected = [g.token_ids for g in generate(make_engine(pages=9), prompts, own)]
    engine = overlapping(pages=9)
    assert [g.token_ids for g in generate(engine, prompts, own)] == expected
    assert engine.stats()["preemptions"] > 0
    assert engine.overlap.overlapped > 0
    engine.check_integrity()


def test_logits_that_are_no_numbers_fail_their_request_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = generate(make_engine(), PROMPTS[1:2], params(1, ignore_eos=True))[0].token_ids
    engine = overlapping()
    run = engine.runner.run

    def broken(slices: Any, pending: Tensor | None = None) -> Any:
        forward = run(slices, pending)
        forward.logits = forward.logits.clone()
        for part, first in zip(slices, forward.first_row, strict=True):
            if part.request.id == "bad" and part.start == 14:
                forward.logits[first] = torch.nan
        return forward

    monkeypatch.setattr(engine.runner, "run", broken)
    engine.add_request(PROMPTS[0], params(0, ignore_eos=True), "bad")
    engine.add_request(PROMPTS[1], params(1, ignore_eos=True), "good")
    outputs = [output for _ in range(60) for output in engine.step()]
    assert [o.error for o in outputs if o.request_id == "bad" and o.finished] == [
        "FloatingPointError: no token can be chosen from position 15 on: logits are not numbers, or none is finite"
    ]
    assert [t for o in outputs if o.request_id == "good" for t in o.token_ids] == expected


@pytest.mark.parametrize("times", [1, 3])
def test_a_forward_that_cannot_be_launched_ahead_has_its_turn(monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    engine = overlapping()
    run, left = engine.runner.run, [times]

    def failing(slices: Any, pending: Tensor | None = None) -> Any:
        if slices[0].start == 14 and left[0]:
            left[0] -= 1
            raise RuntimeError("out of memory")
        return run(slices, pending)

    monkeypatch.setattr(engine.runner, "run", failing)
    [own] = generate(engine, PROMPTS[:1], params(0, ignore_eos=True))
    [expected] = generate(make_engine(), PROMPTS[:1], params(0, ignore_eos=True))
    assert own.token_ids == expected.token_ids[: len(own.token_ids)]
    assert (own.error is None) == (times == 1)
    assert engine.blocks.num_owned == 0

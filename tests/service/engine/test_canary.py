"""Lossy answers are held to exact ones, and a policy that differs too often is withdrawn."""

from __future__ import annotations

import random
from typing import Any

import pytest

from retrieval.types import DEFAULT_OWNER
from service.engine import canary
from service.engine.async_engine import AsyncEngine
from service.engine.canary import Compared
from service.engine.engine import Engine
from service.engine.params import SamplingParams
from service.errors import InvalidRequest

from .conftest import generate, make_engine

SPARSE = "streaming:sink=16,local=16,gate=0,block=16"
KEY = "streaming:gate=0,block=16,sink=16,local=16"


def prompt(seed: int, length: int = 120) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(3, 97) for _ in range(length)]


def run(engine: Engine, count: int = 1, attention: str | None = SPARSE, **changes: Any) -> list[list[int]]:
    """The tokens of answers; whatever the canary makes of them is made when this returns."""
    params = SamplingParams(
        **{"max_tokens": 12, "attention": attention, "drafter": "none", "ignore_eos": True, **changes}
    )
    found: dict[str, list[int]] = {engine.add_request(prompt(seed), params): [] for seed in range(count)}
    while engine.has_work:
        for output in engine.step():
            found[output.request_id] += output.token_ids
    engine.check_integrity()
    return list(found.values())


def agreeing(one: list[int], other: list[int]) -> int:
    return next((i for i, pair in enumerate(zip(one, other, strict=True)) if pair[0] != pair[1]), len(one))


@pytest.mark.parametrize("changes", [{}, {"temperature": 0.9, "seed": 4}])
def test_the_first_difference_is_where_exact_decoding_parts(changes: dict[str, Any]) -> None:
    engine = make_engine(canary=1.0)
    lossy = run(engine, 6, **changes)
    exact = run(make_engine(), 6, "dense", **changes)
    same = [agreeing(one, other) for one, other in zip(lossy, exact, strict=True)]
    found = engine.canary.compared[KEY]
    assert found.answers == 6
    assert found.tokens == 72
    assert sorted(found.parted) == sorted(first for first in same if first < 12)
    assert len(found.parted) > 0
    assert found.same == 6 - len(found.parted)
    assert found.figures()["agreement"] == found.agreeing / 72
    assert changes or found.regret > 0


def test_exact_answers_are_not_compared_and_lossy_ones_by_their_share() -> None:
    engine = make_engine(canary=0.5)
    run(engine, 3, "dense")
    run(engine, 1, "streaming:gate=500,block=16")  # dense at this length
    assert not engine.canary.compared
    run(engine, 4)
    assert engine.canary.compared[KEY].answers == 2
    unwatched = make_engine()
    run(unwatched, 2)
    assert not unwatched.canary.compared


def test_what_something_else_than_the_policy_has_chosen_is_not_compared() -> None:
    engine = make_engine(canary=1.0)
    run(engine, 1, logit_bias=((5, 10.0),))
    assert not engine.canary.compared


def test_answers_go_first() -> None:
    """While somebody waits for an answer nothing is compared, and what was begun waits."""
    engine = make_engine(canary=1.0, step_tokens=16)
    run_params = SamplingParams(max_tokens=2, attention=SPARSE, drafter="none", ignore_eos=True)
    engine.add_request(prompt(0), run_params)
    while engine.scheduler.has_work:
        engine.step()
    engine.step()
    reading = engine.canary._reading
    assert reading is not None
    assert 0 < reading.num_computed < 120
    done = reading.num_computed
    engine.add_request(prompt(1), SamplingParams(max_tokens=4, attention="dense", drafter="none"))
    while len(engine.scheduler.running) + len(engine.scheduler.waiting) > 1:
        engine.step()
        assert reading.num_computed == done
    while engine.has_work:
        engine.step()
    assert engine.canary.compared[KEY].answers == 1
    assert engine.stats()["finished"] == 2


def test_a_policy_that_differs_too_often_is_withdrawn_and_taken_back_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(canary, "LEAST", 3)
    engine = make_engine(canary=1.0, canary_bound=0.999, attention=SPARSE)
    run(engine, 4)
    assert engine.stats()["canary"][KEY]["withdrawn"]
    with AsyncEngine(engine) as door:
        with pytest.raises(InvalidRequest, match=r"was withdrawn: the exact model .*less than 99.9%"):
            door.generate([prompt(0)], SamplingParams(max_tokens=4, attention=SPARSE))
        unnamed = door.generate([prompt(0)], SamplingParams(max_tokens=12, ignore_eos=True))[0]
        assert unnamed.stats["attention"] == "dense"
        exact = generate(make_engine(), [prompt(0)], SamplingParams(max_tokens=12, ignore_eos=True))[0]
        assert unnamed.token_ids == exact.token_ids
        assert door.run(lambda own: own.canary.reset()).result() == [KEY]
        again = door.generate([prompt(0)], SamplingParams(max_tokens=4, attention=SPARSE))[0]
        assert again.stats["attention"] == KEY


def test_nobody_takes_a_policy_from_others_nor_hears_of_their_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(canary, "LEAST", 3)
    engine = make_engine(canary=1.0, canary_bound=0.999, attention=SPARSE)
    run(engine, 4, owner="bob")
    assert engine.canary.is_withdrawn(KEY, "bob")
    assert not engine.canary.is_withdrawn(KEY, "alice")
    assert engine.stats()["canary"][KEY]["withdrawn"], "the operator is told"
    with AsyncEngine(engine) as door:
        asked = {"max_tokens": 4, "ignore_eos": True}
        with pytest.raises(InvalidRequest, match="was withdrawn"):
            door.generate([prompt(0)], SamplingParams(**asked, attention=SPARSE, owner="bob"))
        for attention, owner, in_force in ((SPARSE, "alice", KEY), (None, "alice", KEY), (None, "bob", "dense")):
            [answer] = door.generate([prompt(0)], SamplingParams(**asked, attention=attention, owner=owner))
            assert answer.stats["attention"] == in_force


def test_policies_that_one_owner_thinks_up_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(canary, "POLICIES", 2)
    engine = make_engine(canary=1.0)
    run(engine, 1, owner="alice")
    for local in (32, 48, 64, 80):
        run(engine, 1, f"streaming:sink=16,local={local},gate=0,block=16", owner="bob")
    assert len(engine.canary.compared) == 3
    assert KEY in engine.canary.compared


def test_one_that_agrees_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(canary, "LEAST", 3)
    engine = make_engine(canary=1.0, canary_bound=0.5)
    run(engine, 4, "streaming:sink=16,local=112,gate=0,block=16")  # which leaves out a page at most
    ((policy, found),) = engine.canary.compared.items()
    assert found.agreement > 0.5
    assert not engine.canary.is_withdrawn(policy, DEFAULT_OWNER)


def test_few_answers_withdraw_nothing() -> None:
    engine = make_engine(canary=1.0, canary_bound=1.0)
    run(engine, 4)
    assert engine.canary.compared[KEY].agreement < 1
    assert not engine.canary.is_withdrawn(KEY, DEFAULT_OWNER)


def test_agreement_is_of_the_last_answers() -> None:
    found = Compared()
    for _ in range(canary.WINDOW):
        found.add([False] * 10, 1.0)
    for _ in range(canary.WINDOW):
        found.add([True] * 10, 0.0)
    assert found.agreement == 1
    assert found.answers == 2 * canary.WINDOW


def test_a_comparison_that_fails_is_counted_and_harms_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make_engine(canary=1.0)

    def fail(hidden: object) -> None:
        raise RuntimeError("no")

    monkeypatch.setattr(engine.canary, "_logits_of", fail)
    assert len(run(engine, 2)[0]) == 12
    assert not engine.canary.compared
    assert engine.stats()["failed"] == 0
    assert engine.stats()["canary_skipped"] == 2


def test_several_processes_have_no_canary() -> None:
    with pytest.raises(ValueError, match="FOLIO_CANARY"):
        make_engine(canary=0.1, tensor_parallel=2)

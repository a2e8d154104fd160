"""The border: what is done to every tree, and what comes of a drafter that fails."""

from __future__ import annotations

import pytest
import torch

from drafters.base import Drafter, RequestState
from drafters.calibration import Calibration
from drafters.errors import DrafterError
from drafters.tracked import TrackedDrafter
from drafters.tree import EMPTY, DraftTree
from drafters.verify import Verdict

KEYED = Verdict((), (1,))
LOGITS = torch.zeros(1, 9)


class Chain(Drafter):
    """Proposes 1, 2, 3, 4, each less likely; fails where it is told to."""

    name = "chain"

    def __init__(self, fails: str = "", **members) -> None:
        self._fails = fails
        self.finished = 0
        for member, value in members.items():
            setattr(self, member, value)

    def propose(self, state, budget):
        self._reach("propose")
        return DraftTree.chain([1, 2, 3, 4], [0.9, 0.8, 0.7, 0.6])

    def adjust(self, state, tree, logits):
        self._reach("adjust")
        return logits + 1

    def verify(self, state, tree, logits, keyed):
        self._reach("verify")
        return keyed

    def observe(self, state, tree, verdict, top):
        self._reach("observe")

    def finish(self, state):
        self.finished += 1

    def _reach(self, stage: str) -> None:
        if stage == self._fails:
            raise RuntimeError("broken on purpose")


def tracked(drafter: Drafter, budget: int = 32) -> TrackedDrafter:
    return TrackedDrafter(drafter, Calibration(), vocab_size=9, budget=budget)


def a_state(stops=()) -> RequestState:
    return RequestState("r", [5, 6], 2, stops=frozenset(stops))


def proposed(drafter: Drafter, stops=(), budget: int = 32) -> list[int]:
    return tracked(drafter).propose(a_state(stops), budget).tokens.tolist()


def test_a_tree_is_cut_below_an_end_to_the_budget_and_to_what_is_worth_it():
    assert proposed(Chain()) == [1, 2, 3, 4]
    assert proposed(Chain(), stops=[3]) == [1, 2, 3]
    assert proposed(Chain(), budget=2) == [1, 2]
    assert proposed(Chain(worth=lambda state, tree: 1)) == [1]
    assert proposed(Chain(worth=lambda state, tree: 9), budget=2) == [1, 2]
    assert proposed(Chain(worth=lambda state, tree: len(tree)), stops=[2]) == [1, 2], "worth sees what is left"


def test_a_tree_that_its_drafter_judges_is_verified_as_it_was_drawn():
    assert proposed(Chain(judges=True), stops=[3]) == [1, 2, 3, 4]


def test_a_lossy_drafter_is_asked_though_there_is_room_for_no_node():
    asked = Chain(fails="propose", lossy=True)
    with pytest.raises(DrafterError, match="chain samples a distribution of its own and failed in propose"):
        tracked(asked).propose(a_state(), 0)
    assert proposed(Chain(fails="propose"), budget=0) == []


@pytest.mark.parametrize("stage", ["propose", "verify", "observe"])
def test_a_drafter_that_fails_is_switched_off_and_gives_back_what_it_holds(stage, caplog):
    inner = Chain(fails=stage)
    drafter = tracked(inner)
    tree = drafter.propose(a_state(), 4)
    assert drafter.verify(a_state(), tree, LOGITS, KEYED) == KEYED
    drafter.observe(a_state(), tree, KEYED, None)
    drafter.finish(a_state())
    assert (drafter.stats.failures, inner.finished) == (1, 1)
    assert f"chain failed in {stage}" in caplog.text
    assert drafter.propose(a_state(), 4) is EMPTY


def test_only_a_lossy_drafter_changes_logits_and_its_failure_is_the_requests():
    assert tracked(Chain()).adjust(a_state(), EMPTY, LOGITS) is LOGITS
    assert torch.equal(tracked(Chain(lossy=True)).adjust(a_state(), EMPTY, LOGITS), LOGITS + 1)
    with pytest.raises(DrafterError, match="failed in adjust: broken on purpose; send the request again"):
        tracked(Chain(fails="adjust", lossy=True)).adjust(a_state(), EMPTY, LOGITS)

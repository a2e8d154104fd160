"""Model drafters that give way where they do not pay."""

from __future__ import annotations

from itertools import pairwise

import pytest

from drafters.base import RequestState
from drafters.machine_profile import MachineProfile
from drafters.models.pacing import Pace
from drafters.options import CascadeOptions, DraftModelOptions, RagOptions
from drafters.registry import build
from drafters.sampling.choice import Sampling


def machine(fixed: float = 1e-2, per_row: float = 1e-3) -> MachineProfile:
    profile = MachineProfile()
    for rows in (1, 5, 17, 9, 3, 1):
        profile.record([rows], [1000], fixed + per_row * rows)
    return profile


def state(batch_size: int = 1) -> RequestState:
    return RequestState("r", list(range(1000)), 900, batch_size=batch_size)


def asked(pace: Pace, rounds: int, accepted: int, seconds: float = 0.0, batch_size: int = 1) -> list[bool]:
    """Which of so many rounds were asked for a draft, all with the same result."""
    found = []
    for _ in range(rounds):
        found.append(pace.asks())
        if found[-1]:
            pace.observe(state(batch_size), pace.depth, min(accepted, pace.depth), seconds)
    return found


def test_drafts_shorten_after_rejections_and_grow_with_what_is_accepted():
    pace = Pace(MachineProfile(), 16)
    lengths = [pace.depth]
    for accepted in (16, 3, 0, 2, 6, 14):
        pace.observe(state(), pace.depth, accepted, 0.0)
        lengths.append(pace.depth)
    assert lengths == [16, 16, 8, 2, 6, 14, 16]


def test_rests_grow_while_drafting_loses_time():
    found = asked(Pace(machine(), 8), 80, accepted=0, seconds=5e-2)
    at = [i for i, one in enumerate(found) if one]
    assert [b - a - 1 for a, b in pairwise(at)] == [1, 2, 4, 8, 16, 32]


def test_a_drafter_that_pays_is_asked_in_every_round():
    assert all(asked(Pace(machine(), 8), 20, accepted=8, seconds=5e-2))
    assert not all(asked(Pace(machine(), 8), 20, accepted=8, seconds=5e-2, batch_size=16)), "16 draft in turn"


def test_one_success_ends_the_rests():
    pace = Pace(machine(), 8)
    asked(pace, 40, accepted=0, seconds=5e-2)
    while not pace.asks():
        pass
    pace.observe(state(), 2, 2, 1e-3)
    assert pace.asks()


def test_nothing_rests_before_the_machine_is_known():
    assert all(asked(Pace(MachineProfile(), 8), 20, accepted=0, seconds=1.0))


@pytest.mark.parametrize(
    "options", [RagOptions(context=8, chunk=16), CascadeOptions(context=8, chunk=16), DraftModelOptions()], ids=str
)
def test_an_unhelpful_drafter_costs_few_forwards_and_no_token(lab, options):
    """The draft model is another one altogether: most rounds leave it alone."""
    target, other = lab.Model(vocab_size=31, seed=1), lab.Model(vocab_size=31, seed=2)
    resources = lab.resources(target, other)
    resources.self_model = other
    resources.profile = machine(fixed=1e-7, per_row=1e-7)  # a target so fast that no draft pays
    prompt = [i % 29 for i in range(40)]
    request = RequestState("r", list(prompt), len(prompt))
    tokens = lab.speculate(build(options, resources), target, request, 60)
    assert tokens == lab.plain(target, prompt, Sampling(), 60)
    assert other.forwards < 60

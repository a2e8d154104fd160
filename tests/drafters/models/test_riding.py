"""Prompt tokens that ride in the verification: where they hang, and which of them guess."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from drafters.base import RequestState
from drafters.errors import DrafterError
from drafters.machine_profile import MachineProfile
from drafters.models.riding import Riders
from drafters.options import TrainedOptions
from drafters.registry import build
from drafters.sampling.choice import Sampling
from drafters.tree import EMPTY, DraftTree
from drafters.verify import Verdict

TREE = DraftTree.of([4, 9, 5], [-1, -1, 0], [0.6, 0.3, 0.5])


def state_of(count=12):
    return RequestState("r", list(range(count)), count, Sampling())


@pytest.fixture
def riders(lab):
    return Riders(lab.head("ppd"), MachineProfile())


def rows_cost(seconds):
    """A machine on which a row takes so long beside a step of one second."""
    profile = MachineProfile()
    for rows in (1, 2, 4, 8, 16, 32):
        profile.record([rows], [12], 1 + rows * seconds)
    return profile


def below(hung, row):
    """The prompt tokens below a row of TREE."""
    found, at = [], row
    for node, (token, parent) in enumerate(zip(hung.tokens, hung.parents, strict=True), len(TREE)):
        if parent == at:
            found.append(int(token))
            at = node
    return found


def test_where_nothing_is_known_of_the_machine_the_likeliest_have_one_chain_together(riders):
    """The walk ends at the root with 0.1, at node 0 with 0.1, at node 1 with 0.3, at node 2 with 0.5."""
    hung = riders.hang(state_of(), TREE, 16)
    assert [below(hung, row) for row in range(-1, 3)] == [[], [], [12], [12, 13]]


def test_the_machine_decides_how_many_ride(lab):
    count = {s: len(Riders(lab.head("ppd"), rows_cost(s)).hang(state_of(), TREE, 16)) for s in (1e-6, 0.02, 1.0)}
    assert count[1e-6] == 12
    assert count[1.0] == 3  # one chain, or nothing would ever be guessed
    assert 3 < count[0.02] < 12


@pytest.mark.parametrize("room", [0, 1, 7])
def test_the_room_is_kept_to(lab, room):
    hung = Riders(lab.head("ppd"), rows_cost(1e-6)).hang(state_of(), TREE, room)
    assert len(hung) == room
    both = (np.concatenate(parts) for parts in ((TREE.tokens, hung.tokens), (TREE.parents, hung.parents)))
    DraftTree.of(*both).validate()


@pytest.mark.parametrize(("seconds", "room", "nodes"), [(None, 4, 3), (None, 2, 2), (1e-6, 16, 3), (1.0, 16, 1)])
def test_nodes_and_prompt_tokens_share_the_room(lab, seconds, room, nodes):
    """The values are 0.6, 0.5 and 0.3 of the nodes; 0.25, 0.15 and less below them."""
    riders = Riders(lab.head("ppd"), MachineProfile() if seconds is None else rows_cost(seconds))
    assert riders.worth(state_of(), TREE, room) == nodes


def test_what_is_not_worth_a_row_gives_way(lab):
    """Of nodes that are all but never right, and the chains that ride if the walk ends at the root."""
    tree = DraftTree.of([4, 5, 6, 7], [-1] * 4, [0.2, 0.05, 0.05, 0.05])
    assert Riders(lab.head("ppd"), MachineProfile()).worth(state_of(), tree, 4) == 1


@pytest.mark.parametrize(("room", "rows"), [(2, []), (3, [2]), (8, [1, 2]), (16, [-1, 0, 1, 2])])
def test_blocks_that_see_one_another_run_whole_or_not(lab, room, rows):
    hung = Riders(lab.head("tidar"), rows_cost(1e-6)).hang(state_of(), TREE, room)
    assert [below(hung, row) for row in range(-1, 3)] == [[12, 13, 14] if row in rows else [] for row in range(-1, 3)]


@pytest.mark.parametrize(("path", "row"), [((), -1), ((1,), 1), ((0, 2), 2)])
def test_those_below_the_end_of_the_walk_guess(lab, path, row):
    riders = Riders(lab.head("ppd"), rows_cost(1e-6))
    state = state_of()
    hung = riders.hang(state, TREE, 16)
    parents = np.concatenate((TREE.parents, hung.parents))
    states = torch.arange(-1.0, len(parents))[:, None, None].expand(-1, 1, 16)  # a row's node
    riders.look(states)
    state.tokens += [7] * (len(path) + 1)
    riders.observe(state, TREE, Verdict(path, tuple(state.tokens[12:])))
    assert riders.reach(state) == 3
    nodes = riders.shallow((), (), 0)[:, 0].int().tolist()
    assert parents[nodes].tolist() == [row, *nodes[:-1]]
    state.tokens.append(7)  # a step in which it was not asked
    assert riders.reach(state) == 0
    riders.observe(state, EMPTY, Verdict((), (7,)))  # or one without room for any
    assert riders.reach(state) == 0


def test_what_did_not_run_guesses_nothing(riders):
    state = state_of()
    riders.hang(state, EMPTY, 0)
    state.tokens.append(7)
    riders.observe(state, EMPTY, Verdict((), (7,)))
    assert riders.reach(state) == 0


def test_the_first_step_hangs_and_the_second_guesses(lab):
    """And what it guesses is what the head makes of the prompt tokens behind the text."""
    head, model = lab.head("ppd"), lab.Model(vocab_size=12, seed=1)
    drafter = build(TrainedOptions(min_score=0, paced=False), lab.resources(model, head=head))
    state = RequestState("r", [3, 7, 1, 4, 4, 9], 6, Sampling())
    trees = []
    propose = drafter._inner.propose
    drafter._inner.propose = lambda state, budget: (
        trees.append((propose(state, budget), list(state.tokens))) or trees[-1][0]
    )
    lab.speculate(drafter, model, state, 8)
    assert len(trees[0][0]) == 0
    target = lab.Target(12)
    target.prompts = head.prompts
    guessed = [(tree, tokens) for tree, tokens in trees if len(tree)]
    assert len(guessed) > 3
    for tree, tokens in guessed:
        behind = [target._sum((*tokens[:-1], *range(12, 13 + k))).roll(-1) for k in range(3)]
        best = head.lm_head(torch.stack(behind)).argmax(-1).tolist()
        assert tree.tokens[0] == best[0]
        assert best[1] in tree.tokens[tree.depths[1:] == 2].tolist()


def test_a_step_has_no_more_rows_than_its_budget(lab):
    """Where rows cost nothing, nodes and prompt tokens fill it (`speculate` counts)."""
    resources = lab.resources(lab.Model(vocab_size=12, seed=1), head=lab.head("ppd"))
    resources.profile = rows_cost(1e-6)
    drafter = build(TrainedOptions(min_score=0, paced=False), resources)
    state = RequestState("r", [3, 7, 1, 4, 4, 9], 6, Sampling())
    lab.speculate(drafter, lab.Model(vocab_size=12, seed=1), state, 8, budget=7)
    assert drafter.stats.failures == 0
    assert drafter.stats.drafted > 7


def test_it_cannot_learn_online(lab):
    with pytest.raises(DrafterError, match="ppd learns through the whole target and not online"):
        build(TrainedOptions(online=0.1), lab.resources(lab.Model(vocab_size=12), head=lab.head("ppd")))

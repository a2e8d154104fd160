"""The drafter `trained`: states come before tokens, in pieces, again, or not at all."""

from __future__ import annotations

import pytest

from drafters.base import RequestState
from drafters.options import TrainedOptions
from drafters.registry import build
from drafters.sampling.choice import Sampling

PROMPT = [3, 7, 1, 4, 4, 9, 2, 6, 5, 3, 8, 1]


def drafter_of(lab, name="eagle3", **options):
    head = lab.head(name, **options)
    resources = lab.resources(lab.Model(vocab_size=12), head=head)
    return head, build(TrainedOptions(min_score=0, paced=False), resources)


def tree_after(lab, name, reads, **options):
    """The tree below PROMPT when the states of these ranges came."""
    head, drafter = drafter_of(lab, name, **options)
    state = RequestState("r", list(PROMPT), len(PROMPT), Sampling())
    states = lab.Target(12).states(PROMPT, head.config.reads)
    for first, end in reads:
        drafter.read(state, first, states[first:end])
    drafter.start(state)
    tree = drafter.propose(state, 12)
    assert drafter.stats.failures == 0
    return tree


@pytest.mark.parametrize("name", ["medusa", "eagle3", "dflash"])
def test_pieces_and_repetitions_change_nothing(lab, name):
    whole = tree_after(lab, name, [(0, 11)])
    assert len(whole) > 4
    for reads in ([(0, 4), (4, 5), (5, 11)], [(0, 8), (0, 4), (4, 11)], [(0, 11), (3, 11)]):
        tree = tree_after(lab, name, reads)
        assert (tree.tokens == whole.tokens).all()
        assert (tree.parents == whole.parents).all()


def test_behind_a_gap_it_begins_anew(lab):
    late = tree_after(lab, "eagle3", [(6, 11)])
    gap = tree_after(lab, "eagle3", [(0, 3), (6, 11)])
    assert (late.tokens == gap.tokens).all()


def test_without_states_nothing_is_guessed(lab):
    assert len(tree_after(lab, "eagle3", [])) == 0
    assert len(tree_after(lab, "eagle3", [(0, 10)])) == 0


def test_waiting_states_are_bounded_by_the_window(lab):
    head, drafter = drafter_of(lab, window=8)
    state = RequestState("r", PROMPT * 10, len(PROMPT), Sampling())
    states = lab.Target(12).states(state.tokens, head.config.reads)
    for place in range(len(state.tokens) - 1):
        drafter.read(state, place, states[place : place + 1])
    session = drafter._inner._session
    assert len(session._waiting) == 8
    assert len(drafter.propose(state, 8)) > 0


def test_asked_again_after_a_step_that_was_rolled_back(lab):
    head, drafter = drafter_of(lab)
    state = RequestState("r", list(PROMPT), len(PROMPT), Sampling())
    drafter.read(state, 0, lab.Target(12).states(PROMPT[:-1], head.config.reads))
    first, again = drafter.propose(state, 12), drafter.propose(state, 12)
    assert (first.tokens == again.tokens).all()
    assert len(first)


def test_ids_outside_the_draft_vocabulary_are_never_guessed(lab):
    tree = tree_after(lab, "eagle3", [(0, 11)], draft_vocab=5)
    assert set(tree.tokens.tolist()) <= set(range(1, 6))


def test_the_target_is_told_which_states(lab):
    head, drafter = drafter_of(lab, window=8)
    assert drafter.layers == head.config.reads
    assert drafter.window == 8

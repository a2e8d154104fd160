"""Budgets from measured times."""

from __future__ import annotations

from itertools import count

import numpy as np
import pytest

from drafters.base import Drafter, RequestState, SourceDrafter
from drafters.calibration import Calibration
from drafters.combine.auto import AcceptancePrior, Auto
from drafters.combine.goodput import Goodput, best_budget
from drafters.combine.together import Together
from drafters.machine_profile import MachineProfile
from drafters.options import FusionOptions
from drafters.registry import build
from drafters.research.layer_search import LayerSearch
from drafters.tracked import TrackedDrafter
from drafters.tree import DraftTree
from drafters.verify import Verdict


def taught(seconds, contexts=(1000, 16000)) -> MachineProfile:
    profile = MachineProfile()
    for _ in range(4):
        for context in contexts:
            for batch in (1, 4):
                for rows in (1, 5, 17):
                    profile.record([rows] * batch, [context] * batch, seconds(batch, rows, context))
    return profile


def test_the_profile_recovers_a_machine():
    def seconds(batch, rows, context):
        return 2e-3 + 1e-4 * batch * rows + 2e-7 * batch * context + 3e-8 * batch * rows * context

    profile = taught(seconds)
    for batch, rows, context in ((1, 9, 8000), (2, 1, 4000), (8, 3, 12000)):
        predicted = profile.seconds([rows] * batch, [context] * batch)
        assert predicted == pytest.approx(seconds(batch, rows, context), rel=0.05)
    times = profile.step_times(2, 4000, 8)
    assert len(times) == 9
    assert times[3] == pytest.approx(profile.seconds([4, 4], [4000, 4000]))
    assert (np.diff(times) >= 0).all()


def test_the_profile_never_predicts_that_more_rows_are_faster():
    generator = np.random.default_rng(0)
    profile = MachineProfile()
    for _ in range(50):
        rows = int(generator.integers(1, 32))
        profile.record([rows], [int(generator.integers(100, 30000))], float(generator.uniform(0.01, 0.02)))
        assert (np.diff(profile.step_times(1, 8000, 32)) >= 0).all()


def test_best_budget_by_enumeration():
    scores = np.array([0.9, 0.8, 0.3, 0.1])
    times = np.array([1.0, 1.1, 1.2, 1.9, 2.5])
    rates = [(1 + scores[:n].sum()) / times[n] for n in range(5)]
    assert best_budget(scores, times) == (int(np.argmax(rates)), pytest.approx(max(rates)))
    assert best_budget(np.array([0.05]), np.array([1.0, 2.0]))[0] == 0


def test_slack_prefers_more_nodes_on_a_flat_top_only():
    flat = np.array([1.0, 1.5, 2.01])
    assert best_budget(np.array([0.5, 0.5]), flat)[0] == 0
    assert best_budget(np.array([0.6, 0.5]), flat, slack=0.0)[0] == 1
    assert best_budget(np.array([0.6, 0.5]), flat, slack=0.03)[0] == 2
    assert best_budget(np.array([0.6, 0.5]), flat * [1.0, 1.0, 1.2], slack=0.03)[0] == 1
    assert best_budget(np.array([0.4]), np.array([1.0, 1.41]), slack=0.03)[0] == 0


def tracked(drafter: Drafter) -> TrackedDrafter:
    return TrackedDrafter(drafter, Calibration(), vocab_size=100, budget=32)


class Copier(SourceDrafter):
    """Ten sure tokens in a row; as `learner` two others, which want the target's successors."""

    def __init__(self, name: str, tokens: range, needs_topk: int, score: float = 0.9) -> None:
        self.name, self.needs_topk, self._tokens, self._score = name, needs_topk, tokens, score

    def grow(self, state, extra, budget):
        guessed = self._tokens[:budget]
        return DraftTree.chain(guessed, [self._score] * len(guessed), self.name)


STATE = RequestState("r", [1] * 8000, 8000)


def a_prior(**known: float) -> AcceptancePrior:
    return AcceptancePrior(seconds=4e-4, **known)


def an_auto(prior: AcceptancePrior, score: float = 0.9, step: float = 1e-2) -> Auto:
    """One that has started; guessing takes 0.4 ms of a step."""
    sources = Together([Copier("copier", range(10), 0, score), Copier("learner", range(20, 22), 8)])
    ticks = count()
    auto = Auto(sources, taught(lambda batch, rows, context: step), prior, clock=lambda: 2e-4 * next(ticks))
    auto.start(STATE)
    return auto


def a_step(drafter: Drafter, accepted_source: str) -> DraftTree:
    """The tree of a step whose nodes of one source are accepted."""
    tree = drafter.propose(STATE, 32)
    path = tuple(node for node, source in enumerate(tree.sources) if source == accepted_source)
    verdict = Verdict(path, (*tree.tokens[list(path)].tolist(), 5))
    drafter.observe(STATE, tree, verdict, None)
    return tree


def one_step(auto: Auto, accepted_source: str) -> set[str]:
    """The sources asked in a step whose nodes of one source are accepted."""
    return set(a_step(auto, accepted_source).sources)


def test_auto_spares_the_successors_while_copying_keeps_what_it_promises():
    prior = a_prior()
    auto = an_auto(prior)
    assert one_step(auto, "copier") == {"copier"}
    assert auto.needs_topk == 0
    one_step(auto, "nobody")
    for _ in range(8):
        assert one_step(auto, "learner") == {"copier", "learner"}
        assert auto.needs_topk == 8
    assert one_step(an_auto(prior), "learner") == {"copier", "learner"}, "requests start from what was before them"
    for _ in range(30):
        one_step(auto, "copier")
    assert one_step(an_auto(prior), "copier") == {"copier"}


def test_auto_keeps_the_successors_where_copies_promise_little():
    auto = an_auto(a_prior(), score=0.3)
    for _ in range(3):  # though all of them are right
        assert one_step(auto, "copier") == {"copier", "learner"}
        assert auto.needs_topk == 8


def test_auto_trusts_copies_as_before_where_a_small_promise_was_broken():
    prior = a_prior()
    small = an_auto(prior, score=0.3)
    for _ in range(8):
        one_step(small, "nobody")
    assert one_step(an_auto(prior), "copier") == {"copier"}


def test_auto_rests_where_nothing_is_accepted_and_a_request_begins_with_small_tries():
    prior = a_prior()
    first = tracked(an_auto(prior))
    drafted = [len(a_step(first, "nobody")) for _ in range(60)]
    assert drafted[0] == 10
    assert sum(count > 0 for count in drafted[26:]) == 2
    assert set(drafted[26:]) == {0, 1}
    later = tracked(an_auto(prior))
    drafted = [len(a_step(later, "nobody")) for _ in range(32)]
    assert drafted[0] == 1
    assert np.flatnonzero(drafted).tolist() == [0, 1, 6, 15]


def test_auto_wakes_where_a_try_succeeds():
    auto = tracked(an_auto(a_prior(accepted=0.0)))
    drafted = [len(a_step(auto, "nobody")) for _ in range(7)]
    assert drafted == [1, 1, *[0] * 4, 1]
    rested = [len(a_step(auto, "copier")) for _ in range(11)]
    assert rested == [*[0] * 8, 1, 10, 10]


def test_successors_are_wanted_only_while_tries_succeed():
    auto = tracked(an_auto(a_prior(accepted=0.5), score=0.3))
    wanted = []
    for source in ["nobody"] * 12 + ["learner"] * 12:
        a_step(auto, source)
        wanted.append(auto.needs_topk)
    assert wanted[:9] == [8] * 7 + [0, 0]
    assert wanted[-2:] == [8, 8]


def test_a_resting_drafter_is_neither_asked_nor_taught():
    inner = an_auto(a_prior(accepted=0.0))
    auto = tracked(inner)
    asked = []
    monitored = inner.observe
    inner.observe = lambda *args: asked.append("observe") or monitored(*args)
    for _ in range(7):
        a_step(auto, "nobody")
    assert asked == ["observe"] * 3
    assert (auto.stats.steps, auto.stats.drafted) == (7, 3)


def test_what_is_futile_depends_on_how_long_a_step_takes():
    """One accepted token in twelve steps pays for guessing where a step takes long, and does not where it is short."""

    def tries(step: float) -> int:
        auto = tracked(an_auto(a_prior(accepted=0.1), score=0.3, step=step))
        return sum(len(a_step(auto, "copier" if i % 12 == 11 else "nobody")) > 0 for i in range(240))

    assert tries(step=1.0) == 240
    assert tries(step=2e-3) < 80


def test_one_long_step_does_not_make_guessing_look_dear():
    prior = a_prior()
    auto = an_auto(prior)
    auto._clock = lambda ticks=count(): 10.0 * next(ticks)
    a_step(auto, "copier")
    assert prior.seconds < 5e-4


class Fixed(Drafter):
    name = "fixed"

    def propose(self, state, budget):
        return DraftTree.of(range(8), range(-1, 7), 0.8 ** np.arange(1, 9))


def test_nothing_is_drafted_where_rows_cost_as_much_as_steps():
    """Compute-bound: every row costs a step. Memory-bound: rows are free."""
    state = RequestState("r", [1] * 8000, 8000)
    bound = Goodput(Fixed(), taught(lambda batch, rows, context: 1e-2 * batch * rows))
    assert len(tracked(bound).propose(state, 8)) == 0
    free = Goodput(Fixed(), taught(lambda batch, rows, context: 1e-2))
    assert len(tracked(free).propose(state, 8)) == 8


def test_large_batches_draft_less():
    """Rows are free while few; the more sequences, the sooner compute is what counts."""
    profile = taught(lambda batch, rows, context: 1e-2 + 4e-4 * batch * rows)
    sizes = []
    for batch in (1, 4, 16, 64):
        state = RequestState("r", [1] * 8000, 8000, batch_size=batch)
        sizes.append(len(tracked(Goodput(Fixed(), profile)).propose(state, 8)))
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > sizes[-1]


def test_fusion_asks_its_model_only_where_it_pays(lab):
    """A model whose forwards take far longer than the target's step is left alone after the first try."""
    target = lab.Model(vocab_size=12, seed=1, copying=9.0)
    resources = lab.resources(target)
    for _ in range(30):
        for rows in (1, 4, 16):
            resources.profile.record([rows], [200], 1e-7)
    drafter = build(FusionOptions(model="draft_model"), resources)
    state = RequestState("r", list(range(12)) * 10, 120)
    lab.speculate(drafter, target, state, 60)
    forwards = resources.draft_model.forwards
    always = lab.resources(target)
    lab.speculate(build(FusionOptions(always=True), always), target, RequestState("r", list(range(12)) * 10, 120), 60)
    assert forwards < 0.5 * always.draft_model.forwards + 20


def test_layer_search_keeps_what_is_faster():
    """Skipping layer 3 costs accuracy, the others nothing: the search learns to run it."""
    search = LayerSearch(num_layers=8, ratio=0.5, every=10)
    assert 0 not in search.best
    assert 7 not in search.best
    for _ in range(3000):
        skipped = search.current
        emitted = 2 if 3 in skipped else 6
        search.observe(emitted, 1.0 - 0.05 * len(skipped))
    assert 3 not in search.best
    assert len(search.best) >= 4

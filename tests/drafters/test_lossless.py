"""Every drafter, good, bad or broken, gives the tokens of plain decoding."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drafters.base import RequestState, SourceDrafter
from drafters.calibration import Calibration
from drafters.heads.folder import HEADS
from drafters.options import (
    AutoOptions,
    CascadeOptions,
    DraftModelOptions,
    FusionOptions,
    GoodputOptions,
    OverlapOptions,
    RagOptions,
    RecyclingOptions,
    SelfSpeculationOptions,
    SuffixOptions,
    TrainedOptions,
)
from drafters.registry import DRAFTERS, build
from drafters.sampling.choice import Sampling
from drafters.tracked import TrackedDrafter
from drafters.tree import EMPTY, DraftTree

SAMPLINGS = [
    Sampling(),
    Sampling(temperature=0.3, top_p=0.9, seed=7),
    Sampling(temperature=1.0, top_p=0.9, seed=6),
    Sampling(temperature=0.3, seed=5),
    Sampling(temperature=1.0, top_k=3, seed=8),
]
SPECS = [
    *(options() for name, options in DRAFTERS.items() if name != "self_speculation"),
    SelfSpeculationOptions(every=3, depth=4),
    DraftModelOptions(width=4, depth=4),
    DraftModelOptions(branching=1, depth=10),
    RagOptions(context=64, chunk=16, question=16),
    RagOptions(model="draft_model", context=64, chunk=16, question=16),
    CascadeOptions(context=64, chunk=16, question=16, helper_budget=3),
    FusionOptions(model="none"),
    FusionOptions(model="rag", always=True),
    FusionOptions(model="draft_model", always=True, prune=2),
    GoodputOptions(inner=CascadeOptions()),
    OverlapOptions(inner=RagOptions()),
    SuffixOptions(min_match=1, branching=8, min_score=0),
    RecyclingOptions(ranks=3, depth=3),
]


def prompt_of(seed: int, vocab: int, length: int = 90) -> list[int]:
    """A random prompt that repeats itself."""
    generator = np.random.default_rng(seed)
    part = generator.integers(0, vocab, length // 3).tolist()
    return part + generator.integers(0, vocab, length // 3).tolist() + part


@pytest.mark.parametrize("sampling", [SAMPLINGS[0], SAMPLINGS[2]], ids=str)
@pytest.mark.parametrize("spec", SPECS, ids=repr)
def test_every_drafter_equals_plain_decoding(lab, spec, sampling):
    target = lab.Model(vocab_size=12, seed=1, copying=3.0)
    draft = lab.Model(vocab_size=12, seed=1, copying=1.0, order=1)
    prompt = prompt_of(0, 12)
    expected = lab.plain(target, prompt, sampling, 40)
    resources = lab.resources(target, draft, documents=[prompt, expected])
    for round_ in range(2):  # the second request meets what the first one taught
        state = RequestState(f"r{round_}", list(prompt), len(prompt), sampling, documents=[expected[10:30]])
        drafter = build(spec, resources)
        assert lab.speculate(drafter, target, state, 40) == expected
        assert drafter.stats.failures == 0
        assert drafter.stats.emitted >= 40


@pytest.mark.parametrize(("draft_vocab", "sampling"), [(0, SAMPLINGS[0]), (9, SAMPLINGS[2])], ids=str)
@pytest.mark.parametrize("name", HEADS)
def test_every_trained_drafter_equals_plain_decoding(lab, name, draft_vocab, sampling):
    target = lab.Model(vocab_size=12, seed=1, copying=3.0)
    prompt = prompt_of(0, 12)
    expected = lab.plain(target, prompt, sampling, 40)
    for spec in (TrainedOptions(min_score=0, paced=False), FusionOptions(model="trained", always=True), AutoOptions()):
        resources = lab.resources(target, head=lab.head(name, 12, draft_vocab))
        resources.profile.record([1], [1], 1.0)
        state = RequestState("r", list(prompt), len(prompt), sampling)
        drafter = build(spec, resources)
        assert lab.speculate(drafter, target, state, 40) == expected
        assert drafter.stats.failures == 0
        if spec.name == "trained":
            assert drafter.stats.by_source[name].drafted > 40
            assert drafter.stats.by_position[1].drafted >= drafter.stats.by_position[2].drafted > 0


@given(
    seed=st.integers(0, 10**6),
    vocab=st.integers(2, 9),
    spec=st.sampled_from(SPECS),
    sampling=st.sampled_from(SAMPLINGS),
    budget=st.integers(0, 40),
    copying=st.sampled_from([0.0, 2.0, 8.0]),
)
def test_random_models(lab, seed, vocab, spec, sampling, budget, copying):
    target = lab.Model(vocab_size=vocab, seed=seed, copying=copying)
    prompt = prompt_of(seed, vocab, 30)
    expected = lab.plain(target, prompt, sampling, 25)
    state = RequestState("r", list(prompt), len(prompt), sampling)
    drafter = build(spec, lab.resources(target, documents=[prompt]))
    assert lab.speculate(drafter, target, state, 25, budget) == expected
    assert drafter.stats.failures == 0


class Adversary(SourceDrafter):
    """Proposes trees that a bad drafter might."""

    def __init__(self, kind: str, future: list[int], vocab: int) -> None:
        self.name = kind
        self._future = future
        self._vocab = vocab
        self._random = np.random.default_rng(3)

    def grow(self, state, extra, budget):
        done = len(state.tokens) - state.prompt_length
        coming = self._future[done : done + 6]
        if not coming or self.name == "empty":
            return EMPTY
        if self.name == "oracle":
            return DraftTree.chain(coming)
        if self.name == "always_wrong":
            return DraftTree.chain([(token + 1) % self._vocab for token in coming])
        if self.name == "duplicates":
            tokens = [coming[0], coming[0], *coming[1:2], *coming[1:2]]
            return DraftTree.of(tokens, [-1, -1, 0, 1][: len(tokens)])
        if self.name == "right_in_the_end_only":
            return DraftTree.chain([(coming[0] + 1) % self._vocab, *coming[1:]])
        if self.name == "late_raise" and done > 10:
            raise RuntimeError("broken on purpose")
        if self.name == "bad_ids" and done > 10:
            return DraftTree.chain([self._vocab + 3])
        if self.name == "bad_parents" and done > 10:
            return DraftTree(np.array([1]), np.array([0]), np.ones(1), ("x",), np.array([-1]))
        if self.name == "too_many":
            return DraftTree.of(list(range(self._vocab)) * 8, [-1] * (8 * self._vocab))
        count = int(self._random.integers(1, 12))
        parents = [int(self._random.integers(-1, i)) if i else -1 for i in range(count)]
        return DraftTree.of(self._random.integers(0, self._vocab, count), parents, source="random")


@pytest.mark.parametrize("sampling", SAMPLINGS[:3], ids=str)
@pytest.mark.parametrize(
    "kind",
    [
        "empty",
        "oracle",
        "always_wrong",
        "duplicates",
        "right_in_the_end_only",
        "late_raise",
        "bad_ids",
        "bad_parents",
        "too_many",
        "random",
    ],
)
def test_adversaries(lab, kind, sampling):
    target = lab.Model(vocab_size=7, seed=4, copying=1.0)
    prompt = prompt_of(1, 7)
    expected = lab.plain(target, prompt, sampling, 40)
    drafter = TrackedDrafter(Adversary(kind, expected, 7), Calibration(), 7, budget=32)
    state = RequestState("r", list(prompt), len(prompt), sampling)
    assert lab.speculate(drafter, target, state, 40) == expected
    broken = kind in ("late_raise", "bad_ids", "bad_parents")
    assert drafter.stats.failures == int(broken)
    if kind == "oracle":
        assert drafter.stats.accepted_length > 5
    if kind in ("always_wrong", "right_in_the_end_only"):
        assert drafter.stats.accepted == 0


def test_a_perfect_draft_model_is_always_accepted(lab):
    """At temperature 1 the shared noise makes q = p agree with the target in every token."""
    target = lab.Model(vocab_size=10, seed=2)
    sampling = Sampling(temperature=1.0, top_p=0.9, seed=3)
    prompt = prompt_of(2, 10)
    drafter = build(DraftModelOptions(branching=1, depth=5, min_score=0), lab.resources(target))
    state = RequestState("r", list(prompt), len(prompt), sampling)
    lab.speculate(drafter, target, state, 60)
    assert drafter.stats.acceptance_rate == 1.0
    assert drafter.stats.accepted_length == 6.0

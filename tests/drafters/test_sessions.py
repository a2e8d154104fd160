"""Model drafters: what they cost, what they keep, and what they sample."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from drafters.base import RequestState
from drafters.calibration import Calibration
from drafters.errors import DrafterError
from drafters.models.best_first import BestFirst
from drafters.options import (
    AdaptiveOptions,
    CascadeOptions,
    DraftModelOptions,
    FusionOptions,
    GrowthOptions,
    MultiRoundOptions,
    Options,
    OverlapOptions,
    RagOptions,
    SelfSpeculationOptions,
)
from drafters.registry import build
from drafters.research.multi_round import MultiRound
from drafters.research.target_mix import mix
from drafters.sampling.choice import Sampling
from drafters.tree import EMPTY, DraftTree, fuse
from drafters.verify import Verdict

PROMPT = np.random.default_rng(0).integers(0, 12, 400).tolist()


def run(lab, spec: Options, sampling: Sampling = Sampling(), count: int = 60, draft=None):
    target = lab.Model(vocab_size=12, seed=1, copying=3.0)
    draft = draft or lab.Model(vocab_size=12, seed=1, copying=2.0)
    resources = lab.resources(target, draft)
    resources.self_model = draft
    drafter = build(spec, resources)
    state = RequestState("r", list(PROMPT), len(PROMPT), sampling)
    out = lab.speculate(drafter, target, state, count)
    return draft, drafter, out


KEYED = Verdict((), (5,))  # what the keyed walk would have said


@pytest.mark.parametrize(
    "spec",
    [
        DraftModelOptions(),
        RagOptions(context=100, chunk=20, question=20, depth=4),
        CascadeOptions(),
        FusionOptions(always=True, model="draft_model"),
    ],
)
def test_the_prompt_is_read_once(lab, spec):
    """Rows run = the draft prompt, each emitted token at most once, and the guesses: no round re-reads."""
    draft, drafter, out = run(lab, spec)
    stats = drafter.stats
    prompt = 110 if spec.name == "rag" else len(PROMPT)
    guessed = 17 * stats.steps * (9 if spec.name == "cascade" else 1)  # forwards and the helper's nodes
    assert draft.rows <= prompt + len(out) + guessed
    assert draft.rows >= prompt - 20


def test_accepted_nodes_are_not_run_again(lab):
    """A perfect draft model on a chain: per round one forward for the bonus token and one for each node but the
    last; without keeping nodes it would be twice the tokens."""
    target = lab.Model(vocab_size=12, seed=1)
    resources = lab.resources(target, lab.Model(vocab_size=12, seed=1))
    drafter = build(DraftModelOptions(depth=5, branching=1, min_score=0), resources)
    state = RequestState("r", list(PROMPT), len(PROMPT))
    lab.speculate(drafter, target, state, 60)
    assert drafter.stats.accepted_length == 6.0
    draft = resources.draft_model
    # the prompt; in every round 4 nodes; in all but the first the bonus token and the last node, which never ran
    assert draft.rows == len(PROMPT) + 10 * 4 + 9 * 2


def test_a_cascade_needs_fewer_draft_forwards(lab):
    """The helper copies what the draft model is about to say, so that one draft forward settles several nodes."""
    target = lab.Model(vocab_size=12, seed=1, copying=9.0)
    forwards = {}
    for spec in (RagOptions(depth=12, branching=1, min_score=0), CascadeOptions(depth=12, branching=1, min_score=0)):
        resources = lab.resources(target, target)
        resources.self_model = lab.Model(vocab_size=12, seed=1, copying=9.0)
        drafter = build(spec, resources)
        state = RequestState("r", PROMPT[:40] * 4, 160)
        lab.speculate(drafter, target, state, 80)
        assert drafter.stats.accepted_length > 5
        forwards[spec.name] = resources.self_model.forwards
    assert forwards["cascade"] < 0.6 * forwards["rag"]


@pytest.mark.parametrize("budget", [1, 2, 5])
def test_no_more_nodes_are_run_than_there_are_pages_for(lab, budget):
    """A self-speculating session writes where the step's tree will be: the root and `budget` nodes fit there. Many
    children as good as each other must not make it run more."""
    target = lab.Model(vocab_size=12, seed=1, sharpness=0.1)
    drafter = build(SelfSpeculationOptions(min_score=0, width=2), lab.resources(target))
    state = RequestState("r", list(PROMPT), len(PROMPT), Sampling(temperature=4.0))
    target.requests[state.request_id] = state
    drafter.start(state)
    assert len(drafter.propose(state, budget)) == budget
    assert drafter.stats.failures == 0
    assert 1 <= target.rows <= 1 + budget


def test_adaptive_stops_where_a_rejection_is_likely(lab):
    sharp = lab.Model(vocab_size=12, seed=1, sharpness=8.0)
    wrong = lab.Model(vocab_size=12, seed=9, sharpness=0.3)
    lengths = {}
    for name, draft in (("sharp", sharp), ("wrong", wrong)):
        resources = lab.resources(sharp, draft)
        drafter = build(AdaptiveOptions(stop=0.5), resources)
        state = RequestState("r", list(PROMPT), len(PROMPT))
        lab.speculate(drafter, sharp, state, 60)
        lengths[name] = drafter.stats.drafted / drafter.stats.steps
    assert lengths["wrong"] < 2.5 < lengths["sharp"]


def test_overlap_goes_on_below_what_was_accepted(lab):
    """A draft model that is always right: later rounds find their first nodes run already."""
    target = lab.Model(vocab_size=12, seed=1)
    resources = lab.resources(target, lab.Model(vocab_size=12, seed=1))
    drafter = build(OverlapOptions(inner=DraftModelOptions()), resources)
    state = RequestState("r", list(PROMPT), len(PROMPT))
    out = lab.speculate(drafter, target, state, 60)
    assert out == lab.plain(target, PROMPT, Sampling(), 60)
    assert drafter.stats.failures == 0
    assert drafter.stats.accepted_length > 3


def test_sessions_are_closed(lab):
    for spec in (
        DraftModelOptions(),
        RagOptions(),
        CascadeOptions(),
        FusionOptions(always=True, model="draft_model"),
        OverlapOptions(inner=RagOptions()),
    ):
        opened = []

        class Counting(lab.Model):
            def open(self, token_ids):
                opened.append(super().open(token_ids))  # noqa: B023
                return opened[-1]  # noqa: B023

        model = Counting(vocab_size=12, seed=1)
        drafter = build(spec, lab.resources(model))
        state = RequestState("r", list(PROMPT), len(PROMPT))
        lab.speculate(drafter, model, state, 10)
        assert opened
        assert all(session.closed for session in opened)


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(1.0, 0, 0.9, 4), Sampling(0.3, seed=5)], ids=str)
@pytest.mark.parametrize("eta", [5.0, 40.0])
def test_target_mix_samples_what_it_declares(lab, sampling, eta):
    """The tokens are those of plain decoding from p_hat, the bonus token too, whatever the draft length."""
    target = lab.Model(vocab_size=12, seed=1)
    context = list(PROMPT)
    expected: list[int] = []
    for _ in range(20):
        tokens = context + expected
        mixed = mix(target.logits(tokens)[None], _draft(lab).logits(tokens)[None], sampling.temperature, eta)
        expected.append(int(lab.keyed(mixed, sampling, [len(tokens)])[0]))
    assert expected != lab.plain(target, context, sampling, 20), "a mix that changes nothing proves nothing"
    for depth in (1, 5):
        resources = lab.resources(target)
        resources.self_model = _draft(lab)
        drafter = build(RagOptions(target_mix=eta, depth=depth), resources)
        assert drafter.lossy
        state = RequestState("r", list(context), len(context), sampling)
        assert lab.speculate(drafter, target, state, 20) == expected


def test_target_mix_of_zero_is_lossless(lab):
    drafter = build(RagOptions(target_mix=0), lab.resources(lab.Model(vocab_size=12)))
    assert not drafter.lossy


def _draft(lab):
    return lab.Model(vocab_size=12, seed=2, order=3)


@pytest.mark.parametrize("rule", ["rsd", "specinfer", "spectr"])
def test_multi_round_judges_its_own_trees(lab, rule):
    """Equal models accept everything; at temperature 0 the tokens are the greedy ones."""
    target = lab.Model(vocab_size=8, seed=1)
    for sampling, draft in ((Sampling(1.0, seed=3), target), (Sampling(), lab.Model(vocab_size=8, seed=9))):
        drafter = build(MultiRoundOptions(rule=rule, depth=3), lab.resources(target, draft))
        state = RequestState("r", PROMPT[:20], 20, sampling)
        state.tokens = [token % 8 for token in state.tokens]
        prompt = list(state.tokens)
        drafter.start(state)
        for _ in range(15):
            tree = drafter.propose(state, 16)
            logits = lab.tree_logits(target, state.tokens, tree)
            verdict = drafter.verify(state, tree, logits, KEYED)
            state.tokens.extend(verdict.tokens)
            drafter.observe(state, tree, verdict, None)
        assert drafter.stats.failures == 0
        if draft is target:
            assert drafter.stats.accepted_length == 4.0
        else:
            plain = lab.plain(target, prompt, sampling, len(state.tokens) - 20)
            assert state.tokens[20:] == plain


def test_multi_round_refuses_what_is_not_as_it_was_drawn(lab):
    """Of a tree that was pruned the surviving children are no longer the draws."""
    target = lab.Model(vocab_size=8, seed=1)
    model = lab.resources(target).draft_model
    drafter = MultiRound(model, BestFirst("x", Calibration(), GrowthOptions()), MultiRoundOptions())
    state = RequestState("r", [1, 2, 3], 3, Sampling(1.0, seed=3))
    drafter.start(state)
    drawn = drafter.propose(state, 8)
    logits = lab.tree_logits(target, state.tokens, drawn)
    drafter.verify(state, drawn, logits, KEYED)
    drafter.verify(state, EMPTY, logits[:1], KEYED)
    for touched in (drawn.trim(1), fuse([drawn]), DraftTree.chain([2])):
        with pytest.raises(DrafterError, match="pruned or fused"):
            drafter.verify(state, touched, logits, KEYED)


def test_multi_round_keeps_the_distribution(lab):
    """The first token's frequencies over seeds are the target's, for a draft model that is quite another."""
    target, draft = lab.Model(vocab_size=4, seed=1, sharpness=1.0), lab.Model(vocab_size=4, seed=9, sharpness=1.0)
    prompt = [1, 2, 3]
    p = torch.softmax(target.logits(prompt), -1).numpy()
    count = np.zeros(4)
    for seed in range(400):
        drafter = build(MultiRoundOptions(rule="rsd", depth=1), lab.resources(target, draft))
        state = RequestState("r", list(prompt), 3, Sampling(1.0, seed=seed))
        drafter.start(state)
        tree = drafter.propose(state, 8)
        count[drafter.verify(state, tree, lab.tree_logits(target, prompt, tree), KEYED).tokens[0]] += 1
    np.testing.assert_allclose(count / count.sum(), p, atol=0.08)


def test_a_session_that_fails_leaves_the_answer_exact(lab):
    """The engine may take a session's pages away at any time."""
    target = lab.Model(vocab_size=12, seed=1)

    class Reclaimed(lab.Model):
        def open(self, token_ids):
            session = super().open(token_ids)
            session._fails_at = self.rows + 30
            extend = session.extend

            def failing(tokens, parents):
                if self.rows > session._fails_at:
                    raise RuntimeError("pages were needed elsewhere")
                return extend(tokens, parents)

            session.extend = failing
            return session

    for spec in (
        RagOptions(),
        CascadeOptions(),
        FusionOptions(always=True, model="draft_model"),
        OverlapOptions(inner=RagOptions()),
    ):
        resources = lab.resources(target)
        resources.self_model = resources.draft_model = Reclaimed(vocab_size=12, seed=1)
        drafter = build(spec, resources)
        state = RequestState("r", list(PROMPT), len(PROMPT))
        assert lab.speculate(drafter, target, state, 60) == lab.plain(target, PROMPT, Sampling(), 60)
        assert drafter.stats.failures == 1


class Letters:
    """A tokenizer of one id a letter."""

    def encode(self, text):
        return [ord(c) - 97 for c in text]

    def decode(self, ids):
        return "".join(chr(97 + i) for i in ids)


class Pairs:
    """Another vocabulary: pairs of letters where there are two, else one."""

    def encode(self, text):
        pieces = [text[i : i + 2] for i in range(0, len(text), 2)]
        return [26 + 26 * (ord(p[0]) - 97) + ord(p[1]) - 97 if len(p) == 2 else ord(p) - 97 for p in pieces]

    def decode(self, ids):
        return "".join(chr(97 + i) if i < 26 else chr(97 + (i - 26) // 26) + chr(97 + (i - 26) % 26) for i in ids)


class PairModel:
    """Drafts in pairs what a target in letters says: reads its own text by letters."""

    def __init__(self, target) -> None:
        self.vocab_size = 26 + 26 * 26
        self._target = target

    def open(self, token_ids):
        from types import SimpleNamespace

        tokens = list(token_ids)
        letters, pairs = Letters(), Pairs()
        nodes: list[list[int]] = []

        def row(ids):
            read = letters.encode(pairs.decode(ids))
            first = int(self._target.logits(read).argmax())
            second = int(self._target.logits([*read, first]).argmax())
            out = torch.zeros(self.vocab_size)
            out[26 + 26 * first + second] = 1
            return out

        def advance(ids):
            tokens.extend(ids)
            nodes.clear()
            return torch.stack([row(tokens)])

        def extend(ids, parents):
            for token, parent in zip(ids, parents, strict=True):
                nodes.append([*(nodes[parent] if parent >= 0 else []), token])
            return torch.stack([row(tokens + node) for node in nodes[-len(ids) :]])

        return SimpleNamespace(advance=advance, extend=extend, ready=True, rollback=nodes.clear, close=lambda: None)


def test_another_vocabulary_is_re_encoded(lab):
    target = lab.Model(vocab_size=26, seed=1)
    prompt = np.random.default_rng(1).integers(0, 26, 31).tolist()
    resources = lab.resources(target)
    resources.draft_model = PairModel(target)
    resources.codec, resources.draft_codec = Letters(), Pairs()
    drafter = build(DraftModelOptions(depth=3), resources)
    state = RequestState("r", list(prompt), len(prompt))
    assert lab.speculate(drafter, target, state, 40) == lab.plain(target, prompt, Sampling(), 40)
    assert drafter.stats.failures == 0
    assert drafter.stats.accepted_length > 3


def test_a_draft_model_of_another_vocabulary_reads_the_retrieved_chunks_alone(lab, monkeypatch):
    target = lab.Model(vocab_size=26, seed=1)
    prompt = np.random.default_rng(2).integers(0, 26, 60).tolist()
    chunks = prompt[20:33]
    resources = lab.resources(target)
    model = resources.draft_model = PairModel(target)
    resources.codec, resources.draft_codec = Letters(), Pairs()
    opened = []
    monkeypatch.setattr(model, "open", lambda ids, open=model.open: opened.append(list(ids)) or open(ids))
    drafter = build(RagOptions(model="draft_model", depth=3), resources)
    state = RequestState("r", list(prompt), len(prompt), draft_prompt=chunks)
    assert lab.speculate(drafter, target, state, 30) == lab.plain(target, prompt, Sampling(), 30)
    assert drafter.stats.failures == 0
    [read] = opened
    written = Letters().encode(Pairs().decode(read))
    assert written[: len(chunks) - 2] == chunks[:-2], "and what was written before the drafter began"
    with pytest.raises(DrafterError, match="target_mix mixes two distributions of the same tokens"):
        build(RagOptions(model="draft_model", target_mix=5.0), resources)


def test_verify_of_a_failed_drafter_is_the_keyed_walk(lab):
    target = lab.Model(vocab_size=8, seed=1)
    drafter = build(MultiRoundOptions(), lab.resources(target))
    state = RequestState("r", [1, 2], 2)
    tree = drafter.propose(state, 4)  # before start: it fails
    assert len(tree) == 0
    assert drafter.stats.failures == 1
    assert drafter.verify(state, tree, lab.tree_logits(target, [1, 2], tree), KEYED) == KEYED

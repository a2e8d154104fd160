"""What can be asked for: options and their bounds, what an engine lacks, and drafters of one's own."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from drafters import registry
from drafters.base import RequestState, SourceDrafter
from drafters.errors import DrafterError
from drafters.options import (
    AutoOptions,
    CascadeOptions,
    DatastoreOptions,
    DraftModelOptions,
    FusionOptions,
    GoodputOptions,
    MultiRoundOptions,
    NoDrafterOptions,
    Options,
    OverlapOptions,
    RagOptions,
    SelfSpeculationOptions,
    SuffixOptions,
    option,
)
from drafters.registry import DRAFTERS, build, describe, register
from drafters.resources import Resources
from drafters.tree import DraftTree


def test_what_changes_the_tokens_says_so():
    assert RagOptions(target_mix=10).lossy
    assert not RagOptions().lossy
    assert [name for name, options in DRAFTERS.items() if not options.keyed] == ["multi_round"]
    assert [name for name, options in DRAFTERS.items() if options().lossy] == []


@pytest.mark.parametrize(
    ("options", "sources"),
    [
        (NoDrafterOptions(), set()),
        (AutoOptions(), {"documents", "datastore"}),
        (SuffixOptions(), {"documents"}),
        (RagOptions(), {"draft_prompt"}),
        (CascadeOptions(), {"documents", "datastore", "draft_prompt"}),
        (FusionOptions(), {"documents", "datastore", "draft_prompt", "draft_model"}),
        (FusionOptions(model="none"), {"documents", "datastore"}),
        (FusionOptions(model="draft_model"), {"documents", "datastore", "draft_model"}),
        (OverlapOptions(), {"draft_model"}),
        (OverlapOptions(inner=RagOptions()), {"draft_prompt"}),
        (GoodputOptions(inner=DatastoreOptions()), {"datastore"}),
    ],
    ids=lambda value: ",".join(sorted(value)) if isinstance(value, set) else repr(value),
)
def test_what_a_drafter_draws_on_is_known_before_it_is_made(options, sources):
    assert options.draws_on == sources


@pytest.mark.parametrize(
    ("options", "changes", "said"),
    [
        (SuffixOptions, {"min_match": 0}, "drafter suffix: min_match=0 is out of bounds .1 to 64"),
        (SuffixOptions, {"factor": float("nan")}, "factor=nan is out of bounds"),
        (RagOptions, {"target_mix": -1.0}, "target_mix=-1.0 is out of bounds"),
        (RagOptions, {"context": -1}, "context=-1 is out of bounds .0 to any"),
        (MultiRoundOptions, {"rule": "best"}, "rule must be one of rsd, specinfer, spectr, not 'best'"),
        (
            FusionOptions,
            {"model": "other"},
            "drafter fusion: model must be one of auto, none, trained, rag, draft_model",
        ),
        (DatastoreOptions, {"min_suffix": 17}, "min_suffix=17 exceeds max_suffix=16"),
        (GoodputOptions, {"inner": AutoOptions()}, "inner cannot be auto"),
        (GoodputOptions, {"inner": RagOptions(target_mix=1.0)}, "inner cannot be rag"),
        (OverlapOptions, {"inner": SuffixOptions()}, "inner must be draft_model, rag or cascade, not suffix"),
        (OverlapOptions, {"inner": RagOptions(target_mix=1.0)}, "inner must be"),
    ],
)
def test_what_cannot_be_is_refused_by_name(options, changes, said):
    with pytest.raises(DrafterError, match=said):
        options(**changes)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (DraftModelOptions(), "draft model"),
        (RagOptions(), "drafter rag needs .* second sequence"),
        (RagOptions(model="draft_model"), "drafter rag needs a draft model"),
        (CascadeOptions(), "drafter cascade needs .* second sequence"),
        (DatastoreOptions(), "token store"),
        (SelfSpeculationOptions(), "skip layers"),
        (FusionOptions(model="draft_model"), "draft model"),
        (GoodputOptions(inner=DraftModelOptions()), "draft model"),
    ],
    ids=repr,
)
def test_what_an_engine_lacks_is_said_before_any_work(options, said):
    with pytest.raises(DrafterError, match=said):
        build(options, Resources(vocab_size=9))


def test_another_vocabulary_needs_both_tokenizers(lab):
    resources = lab.resources(lab.Model(vocab_size=9), lab.Model(vocab_size=11))
    with pytest.raises(DrafterError, match=r"11 token ids, the target 9.*both tokenizers"):
        build(DraftModelOptions(), resources)
    with pytest.raises(DrafterError, match="11 token ids"):
        build(MultiRoundOptions(), resources)
    with pytest.raises(DrafterError, match="drafter rag: the draft model has 11 token ids"):
        build(RagOptions(model="draft_model"), resources)
    with pytest.raises(DrafterError, match="target's vocabulary"):
        build(FusionOptions(model="draft_model"), resources)


def test_overlap_goes_on_in_the_targets_vocabulary_only(lab):
    resources = lab.resources(lab.Model(vocab_size=9), lab.Model(vocab_size=11))
    resources.codec = resources.draft_codec = object()
    build(DraftModelOptions(), resources)
    with pytest.raises(DrafterError, match="target's vocabulary"):
        build(OverlapOptions(), resources)


def test_a_datastore_of_another_tokenizer_is_refused(lab):
    resources = lab.resources(lab.Model(vocab_size=9), documents=[[1, 2, 3]])
    resources.tokenizer = lambda: "another"
    with pytest.raises(DrafterError, match="tokenizer table, the model has another"):
        build(DatastoreOptions(), resources)
    build(AutoOptions(), resources)  # goes without it
    resources.tokenizer = lambda: "table"
    build(DatastoreOptions(), resources)


def test_every_option_is_described():
    described = describe()
    assert set(described) == set(DRAFTERS)
    for options in described.values():
        assert "budget" in options
        assert all(text for text in options.values())
    assert described["goodput"]["inner"] == "the drafter whose trees are cut (suffix)"


def test_budgets_hold_and_none_is_plain(lab):
    target = lab.Model(vocab_size=9, copying=5.0)
    for name, options in DRAFTERS.items():
        drafter = build(options(budget=3), lab.resources(target, documents=[[1, 2, 3, 1, 2, 3]]))
        state = RequestState("r", [1, 2, 3] * 5, 15)
        target.requests["r"] = state
        drafter.start(state)
        for budget in (0, 2, 50):
            tree = drafter.propose(state, budget)
            assert len(tree) <= min(budget, 3)
            assert drafter.stats.failures == 0, name
        if name == "none":
            assert len(tree) == 0
        drafter.finish(state)


@dataclass(frozen=True)
class TwiceOptions(Options):
    name = "twice"

    times: int = option(2, "how often the last token is repeated", 1, 8)


class Twice(SourceDrafter):
    name = "twice"

    def __init__(self, times: int) -> None:
        self._times = times

    def grow(self, state, extra, budget):
        return DraftTree.chain([state.tokens[-1]] * self._times, source=self.name)


def test_a_drafter_of_ones_own_is_registered(monkeypatch):
    for table in ("DRAFTERS", "_MAKERS"):
        monkeypatch.setattr(registry, table, dict(getattr(registry, table)))
    register(TwiceOptions, lambda options, resources: Twice(options.times))
    drafter = build(TwiceOptions(times=3), Resources(vocab_size=9))
    state = RequestState("r", [1, 2], 2)
    drafter.start(state)
    assert drafter.propose(state, 8).tokens.tolist() == [2, 2, 2]
    assert drafter.propose(state, 2).tokens.tolist() == [2, 2]
    with pytest.raises(DrafterError, match="there is a drafter 'twice' already"):
        register(TwiceOptions, lambda options, resources: Twice(1))

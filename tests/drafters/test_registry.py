"""Names and options: what is accepted, and what the refusals say."""

from __future__ import annotations

import pytest

from drafters.base import RequestState
from drafters.errors import DrafterError
from drafters.registry import build, describe, names, parse
from drafters.resources import Resources
from drafters.tree import EMPTY
from drafters.verify import Verdict


def test_options_are_read():
    spec = parse("suffix:factor=2.5, min_match=3,budget=7")
    assert (spec.options.factor, spec.options.min_match, spec.options.budget) == (2.5, 3, 7)
    assert parse("fusion:always=True").options.always is True
    assert parse("rag:target_mix=10").lossy
    assert not parse("rag").lossy
    assert not parse("multi_round").keyed
    assert parse("fusion").keyed


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("nosuch", "unknown drafter 'nosuch'.*suffix"),
        ("", "unknown drafter"),
        ("suffix:depth=3", "no option 'depth'.*factor"),
        ("suffix:factor", "key=value"),
        ("suffix:factor=x", "factor must be a number"),
        ("suffix:min_match=1.5", "min_match must be a whole number"),
        ("suffix:min_match=0", "out of bounds"),
        ("suffix:factor=nan", "out of bounds"),
        ("suffix:factor=1,factor=2", "given twice"),
        ("rag:target_mix=-1", "target_mix=-1 is out of bounds"),
        ("fusion:always=yes", "true or false"),
    ],
)
def test_bad_options_are_named(text, said):
    with pytest.raises(DrafterError, match=said):
        parse(text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("draft_model", "draft model"),
        ("rag", "second sequence"),
        ("cascade", "second sequence"),
        ("datastore", "token store"),
        ("self_speculation", "skip layers"),
        ("fusion:model=draft_model", "draft model"),
        ("fusion:model=other", "model must be"),
        ("goodput:inner=auto", "inner cannot be auto"),
        ("goodput:inner=nosuch", "unknown drafter"),
        ("overlap:inner=suffix", "inner must be"),
        ("multi_round:rule=best", "rule must be one of"),
    ],
)
def test_what_an_engine_lacks_is_said_before_any_work(text, said):
    with pytest.raises(DrafterError, match=said):
        build(text, Resources(vocab_size=9))


def test_another_vocabulary_needs_both_tokenizers(lab):
    resources = lab.resources(lab.Model(vocab_size=9), lab.Model(vocab_size=11))
    with pytest.raises(DrafterError, match=r"11 token ids, the target 9.*both tokenizers"):
        build("draft_model", resources)
    with pytest.raises(DrafterError, match="11 token ids"):
        build("multi_round", resources)
    with pytest.raises(DrafterError, match="target's vocabulary"):
        build("fusion:model=draft_model", resources)


def test_a_datastore_of_another_tokenizer_is_refused(lab):
    resources = lab.resources(lab.Model(vocab_size=9), documents=[[1, 2, 3]])
    resources.tokenizer = "another"
    with pytest.raises(DrafterError, match="tokenizer table, the model has another"):
        build("datastore", resources)
    build("auto", resources)  # goes without it
    resources.tokenizer = "table"
    build("datastore", resources)


def test_every_option_is_described():
    described = describe()
    assert set(described) == set(names())
    for options in described.values():
        assert "budget" in options
        assert all(text for text in options.values())


def test_budgets_hold_and_none_is_plain(lab):
    target = lab.Model(vocab_size=9, copying=5.0)
    for name in names():
        drafter = build(f"{name}:budget=3", lab.resources(target, documents=[[1, 2, 3, 1, 2, 3]]))
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


def test_a_failure_in_observe_is_survived(lab, caplog):
    drafter = build("suffix", Resources(vocab_size=9))
    drafter._inner.observe = None
    state = RequestState("r", [1, 2, 3], 3)
    drafter.start(state)
    drafter.observe(state, EMPTY, Verdict((), (1,)), None)
    assert drafter.stats.failures == 1
    assert "suffix" in caplog.text
    assert len(drafter.propose(state, 4)) == 0

"""Drafters and policies in words: what is read, and what the refusals say."""

from __future__ import annotations

import subprocess
import sys

import pytest

from drafters.options import CascadeOptions, FusionOptions, GoodputOptions, OverlapOptions, SuffixOptions
from drafters.registry import DRAFTERS
from service.engine.options import parse_drafter, parse_policy
from service.errors import InvalidRequest
from sparse_attn.plan.names import NAMES
from sparse_attn.plan.policies import POLICIES, Joined, LServe, Quest, TriangleMix, XAttention
from sparse_attn.plan.policy import Policy


def test_names_alone_are_the_defaults():
    assert all(parse_drafter(name) == options() for name, options in DRAFTERS.items())
    assert all(parse_policy(name) == policy() for name, policy in POLICIES.items())
    assert parse_policy("dense") == Policy()


def test_what_is_no_policy_is_refused_before_torch_is_imported():
    assert tuple(POLICIES) == NAMES
    program = (
        "import sys\nfrom service.engine.options import parse_policy\nfrom service.errors import InvalidRequest\n"
        "try: parse_policy('quest+nosuch:a=1')\n"
        "except InvalidRequest as error: print(error.detail, 'torch' in sys.modules)"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert said.startswith("unknown attention policy 'nosuch'; there are dense, streaming")
    assert said.endswith("auto. False\n")


def test_options_are_read():
    assert parse_drafter("suffix:factor=2.5, min_match=3,budget=7") == SuffixOptions(factor=2.5, min_match=3, budget=7)
    assert parse_drafter(" fusion:always=True,model=rag") == FusionOptions(always=True, model="rag")
    assert parse_policy("xattention:p=0.95,stride=8,share=true") == XAttention(p=0.95, stride=8, share=True)
    assert parse_policy(" lserve:budget=2048, streaming=0 ") == LServe(budget=2048, streaming=0.0)
    assert parse_policy("xattention:share=1") == XAttention(share=True)


def test_a_drafter_may_be_the_option_of_another():
    assert parse_drafter("goodput:inner=suffix:factor=2") == GoodputOptions(inner=SuffixOptions(factor=2.0))
    assert parse_drafter("overlap:inner=cascade,budget=4") == OverlapOptions(inner=CascadeOptions(), budget=4)


def test_two_policies_are_joined():
    assert parse_policy("trianglemix+quest:budget=1024") == Joined(first=TriangleMix(), second=Quest(budget=1024))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("nosuch", "^unknown drafter 'nosuch'; there are none, auto, prompt_lookup, suffix"),
        ("", "unknown drafter ''"),
        ("suffix:depth=3", "^drafter suffix has no option 'depth'; it has budget, factor"),
        ("suffix:factor", "drafter suffix: write options as key=value, not 'factor'"),
        ("suffix:factor=x", "drafter suffix: factor must be a number, not 'x'"),
        ("suffix:min_match=1.5", "min_match must be a whole number"),
        ("suffix:min_match=0", "drafter suffix: min_match=0 is out of bounds"),
        ("suffix:factor=nan", "out of bounds"),
        ("suffix:factor=1,factor=2", "drafter suffix: factor is given twice"),
        ("fusion:always=yes", "always must be true or false, not 'yes'"),
        ("cascade:target_mix=1", "drafter cascade has no option 'target_mix'"),
        ("goodput:inner=nosuch", "unknown drafter 'nosuch'"),
        ("goodput:inner=auto", "inner cannot be auto"),
    ],
)
def test_what_is_no_drafter_is_refused_by_name(text, said):
    with pytest.raises(InvalidRequest, match=said) as refusal:
        parse_drafter(text)
    assert refusal.value.param == "drafter"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("sparse", "^unknown attention policy 'sparse'; there are dense, streaming, minference"),
        ("", "unknown attention policy"),
        ("quest:budgets=3", "^attention policy quest has no option 'budgets'; it has gate, block, budget"),
        ("quest:budget", "attention policy quest: write options as key=value, not 'budget'"),
        ("quest:budget=lots", "quest: budget must be a whole number, not 'lots'"),
        ("xattention:share=maybe", "share must be true or false"),
        ("quest:budget=1,budget=2", "budget is given twice"),
        ("dense+nosuch", "unknown attention policy 'nosuch'"),
        ("dense+dense+dense", "at most two"),
    ],
)
def test_what_is_no_policy_is_refused_by_name(text, said):
    with pytest.raises(InvalidRequest, match=said) as refusal:
        parse_policy(text, "kv_groups")
    assert refusal.value.param == "kv_groups"

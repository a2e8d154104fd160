"""What an engine refuses at its door: once, in words, before anything is queued."""

from __future__ import annotations

from typing import Any

import pytest

from service.engine.admission import Admission
from service.engine.params import SamplingParams
from service.engine.sampling.grammars import Constraint
from service.errors import InvalidRequest, PromptTooLong

from .conftest import make_engine


@pytest.fixture(scope="module")
def admission() -> Admission:
    return Admission(make_engine())


@pytest.mark.parametrize(
    ("prompt", "kind", "words"),
    [
        ([], InvalidRequest, "empty"),
        ([3, 97], InvalidRequest, "token id 97"),
        ([3, -1], InvalidRequest, "token id -1"),
        ([3] * 510, PromptTooLong, "length is 512 tokens; the prompt has 510 tokens and the answer may have 12"),
    ],
)
def test_a_bad_prompt_is_refused_by_the_name_it_was_given_under(
    admission: Admission, prompt: list[int], kind: type[InvalidRequest], words: str
) -> None:
    with pytest.raises(kind, match=words) as refused:
        admission.check_prompt(prompt, SamplingParams(max_tokens=12), "question")
    assert refused.value.param == "question"


def test_the_longest_prompt_is_let_in(admission: Admission) -> None:
    assert admission.window == 512
    admission.check_prompt([3] * 500, SamplingParams(max_tokens=12))


def test_a_pool_too_small_for_the_request_is_told_by_its_setting() -> None:
    with pytest.raises(PromptTooLong, match="in 2 pages of KV") as refused:
        Admission(make_engine(pages=2)).check_prompt([3] * 40, SamplingParams(max_tokens=20))
    assert "FOLIO_KV_MEMORY" in refused.value.detail


@pytest.mark.parametrize(
    ("options", "param", "words"),
    [
        ({"drafter": "nonsense"}, "drafter", "unknown drafter 'nonsense'"),
        ({"drafter": "suffix:colour=red"}, "drafter", "no option 'colour'"),
        ({"attention": "nonsense"}, "attention", "unknown attention policy 'nonsense'"),
        ({"constraint": Constraint("regex", "(")}, "structured_outputs", "regex of the output cannot be used"),
        ({"constraint": Constraint("json_schema", "{")}, "structured_outputs", "json schema of the output cannot"),
        ({"constraint": Constraint("regex", "a")}, "structured_outputs", "fast tokenizer"),
        ({"stop": ("x",)}, "stop", "tokenizer"),
        ({"logit_bias": ((97, 1.0),)}, "logit_bias", "token id 97"),
    ],
)
def test_bad_options_are_refused(admission: Admission, options: dict[str, Any], param: str, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words) as refused:
        admission.check(SamplingParams(**options))
    assert refused.value.param == param

"""Constrained output: what comes out keeps to its form, whoever drafts it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from drafters.tree import EMPTY, DraftTree
from service.engine.admission import Admission
from service.engine.engine import Engine
from service.engine.params import SamplingParams
from service.engine.sampling.constraint import ConstraintCompiler
from service.engine.sampling.grammars import Constraint
from service.errors import InvalidRequest

from ..conftest import generate, make_engine

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"enum": ["gate", "keeper", "river"]},
        "pages": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 99}, "maxItems": 3},
    },
    "required": ["name", "pages"],
    "additionalProperties": False,
}
JSON = Constraint("json_schema", json.dumps(SCHEMA))
PROMPT = '{"name": "keeper", "pages": [1, 22, 3]} {"name": "river", "pages": [1, 22]} '


@pytest.fixture(scope="module")
def engine(tiny_model: Path) -> Engine:
    return Engine.from_pretrained(str(tiny_model), dtype="float64", kv_memory=16 << 20)


@pytest.fixture(scope="module")
def ids(tiny_model: Path) -> list[int]:
    return AutoTokenizer.from_pretrained(tiny_model).encode(PROMPT)


def answers(engine: Engine, ids: list[int], constraint: Constraint, drafter: str = "none", **changes: Any) -> list[Any]:
    options = {"max_tokens": 80, "temperature": 1.0, "constraint": constraint, "drafter": drafter} | changes
    return generate(engine, [ids] * 6, [SamplingParams(seed=seed, **options) for seed in range(6)])


def test_json_keeps_to_its_schema(engine: Engine, ids: list[int]) -> None:
    texts = [answer.text for answer in answers(engine, ids, JSON)]
    for text in texts:
        value = json.loads(text)
        assert set(value) == {"name", "pages"}
        assert value["name"] in SCHEMA["properties"]["name"]["enum"]
        assert len(value["pages"]) <= 3
        assert all(0 <= page <= 99 for page in value["pages"])
        assert text == json.dumps(value)  # no white space but Python's
    assert len(set(texts)) > 2


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("drafter", ["auto", "suffix", "prompt_lookup"])
def test_drafting_stays_lossless(engine: Engine, ids: list[int], drafter: str, temperature: float) -> None:
    changes = {"temperature": temperature, "top_p": 0.95, "min_p": 0.01, "presence_penalty": 0.2}
    plain = answers(engine, ids, JSON, **changes)
    drafted = answers(engine, ids, JSON, drafter, **changes)
    assert [answer.token_ids for answer in drafted] == [answer.token_ids for answer in plain]
    if drafter != "auto":  # which guesses where it pays on this machine
        assert sum(answer.stats["drafting"]["accepted"] for answer in drafted) > 0
    engine.check_integrity()


def test_multi_round_draws_no_token_that_is_not_allowed(tiny_model: Path, ids: list[int]) -> None:
    engine = Engine.from_pretrained(str(tiny_model), draft_model=str(tiny_model), kv_memory=16 << 20)
    for answer in answers(engine, ids, JSON, "multi_round"):
        assert json.loads(answer.text)["name"] in SCHEMA["properties"]["name"]["enum"]


def test_expressions_choices_and_grammars(engine: Engine, ids: list[int]) -> None:
    for answer in answers(engine, ids, Constraint("regex", r"[a-c]{2,4}-\d{3}")):
        assert re.fullmatch(r"[a-c]{2,4}-\d{3}", answer.text)
        assert answer.finish_reason == "stop"
    choices = ["yes", "no", 'he said "why\\not"']
    assert {answer.text for answer in answers(engine, ids, Constraint.one_of(choices))} <= set(choices)
    grammar = 'start: "(" start ")" | "x"'
    for answer in answers(engine, ids, Constraint("grammar", grammar), max_tokens=200):
        depth = answer.text.count("(")
        assert answer.finish_reason == "length" or answer.text == "(" * depth + "x" + ")" * depth


def test_an_answer_that_is_cut_off_says_so(engine: Engine, ids: list[int]) -> None:
    answer = answers(engine, ids, JSON, max_tokens=4)[0]
    assert answer.finish_reason == "length"
    assert answer.text.startswith('{"na')


def test_rows_are_masked_by_their_own_paths(tiny_model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    compiler = ConstraintCompiler(tokenizer, len(tokenizer), frozenset([tokenizer.eos_token_id]))

    def after(text: str, tree: DraftTree = EMPTY) -> list[set[str]]:
        constrained = compiler.start(Constraint("regex", "a(b|c+)d"))
        rows = constrained.adjust(torch.zeros(len(tree) + 1, len(tokenizer)), tokenizer.encode(text), tree)
        return [{tokenizer.decode([i]) for i in np.flatnonzero(row)} for row in torch.isfinite(rows).numpy()]

    b, c, d = (tokenizer.encode(letter)[0] for letter in "bcd")
    end = tokenizer.eos_token_id
    # after "a": b, c, d (under b), the end (under d), c (under c), b (under d, where it is not allowed), d (under c)
    tree = DraftTree.of([b, c, d, end, c, b, d], [-1, -1, 0, 2, 1, 2, 1])
    rows = after("a", tree)
    assert rows[:4] == [{"b", "c"}, {"d"}, {"c", "d"}, {tokenizer.eos_token}]
    assert (rows[5], rows[7]) == ({"c", "d"}, {tokenizer.eos_token})
    assert after("") == [{"a"}]
    assert after("ac") == [{"c", "d"}]


@pytest.mark.parametrize(
    ("constraint", "said"),
    [
        (Constraint("json_schema", '{"type": "nosuch"}'), "json schema of the output cannot be used.*nosuch"),
        (Constraint("json_schema", "{"), "json schema of the output cannot be used"),
        (Constraint("regex", "(a"), "regex of the output cannot be used"),
        (Constraint("grammar", "start: nothing"), "grammar of the output cannot be used"),
    ],
)
def test_what_cannot_be_read_is_refused(engine: Engine, ids: list[int], constraint: Constraint, said: str) -> None:
    with pytest.raises(InvalidRequest, match=said):
        Admission(engine).check(SamplingParams(constraint=constraint))
    assert not engine.has_work


def test_a_model_without_tokenizer_is_told_so() -> None:
    with pytest.raises(InvalidRequest, match="fast tokenizer"):
        Admission(make_engine()).check(SamplingParams(constraint=JSON))


def test_going_on_after_the_end_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="ignore_eos") as caught:
        SamplingParams(constraint=JSON, ignore_eos=True)
    assert caught.value.param == "ignore_eos"


def test_a_matcher_at_its_limits_fails_its_own_request_alone(
    engine: Engine, ids: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [
        engine.add_request(ids, SamplingParams(max_tokens=8, constraint=constraint, drafter="none"))
        for constraint in (JSON, None)
    ]
    engine._requests[names[0]].logits_processor._constrained._matcher.consume_token(
        0
    )  # not allowed: an error from now on
    last = {}
    while engine.has_work:
        last |= {output.request_id: output for output in engine.step()}
    assert "cannot be constrained further" in last[names[0]].error
    assert isinstance(last[names[0]].refusal, InvalidRequest)
    assert (last[names[1]].error, last[names[1]].refusal) == (None, None)
    engine.check_integrity()

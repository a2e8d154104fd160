"""What is allowed where tools may be called, and what is not."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from llguidance import LLMatcher, LLTokenizer

from service.answering.prompting.template import ChatTemplate
from service.answering.tools.calling import HERMES, CallFormat, Calling
from service.answering.tools.definitions import Tool, ToolChoice
from service.answering.tools.grammar import MOST_CALLS, calls_constraint
from service.engine.sampling.grammars import inspect
from service.engine.sampling.vocabulary import vocabulary_of
from service.errors import InvalidRequest
from tests.service.answering.prompting import templates

CITY = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["city"],
}
TOOLS = [Tool("get", "", CITY), Tool("get_all", "")]
LLAMA = CallFormat("", None, "", "parameters")
MISTRAL = CallFormat("[TOOL_CALLS] [", ", ", "]")


BARE = '{"name": "get", "arguments": %s}'


def accepts(text: str, written: CallFormat = HERMES, **how: Any) -> bool:
    """Whether a text is a whole answer."""
    constraint = calls_constraint(written, TOOLS, {}, **how)
    matcher = LLMatcher(LLTokenizer("byte"), inspect(constraint), log_level=0)
    data = list(text.encode())
    return matcher.try_consume_tokens(data) == len(data) and matcher.is_accepting()


def call(arguments: dict[str, Any], name: str = "get", written: CallFormat = HERMES, times: int = 1) -> str:
    return written.written([{"name": name, "arguments": arguments}] * times)


@pytest.mark.parametrize(
    ("text", "fine"),
    [
        ("It is grey.", True),
        ("", True),
        ("A < b, and <tool> is no call", True),
        (call({"city": "Lund"}), True),
        ("Let me see.\n" + call({"city": "Lund", "days": 3}), True),
        (call({}, "get_all"), True),
        (call({"city": "Lund"}, times=3), True),
        (call({"city": "Lund"}, times=MOST_CALLS + 1), False),
        (call({"city": 5}), False),
        (call({"city": "Lund", "days": 10}), False),
        (call({"days": 3}), False),
        (call({"city": "Lund", "country": "Sweden"}), False),
        (call({"city": "Lund"}, "get_none"), False),
        (call({"city": "Lund"}) + "\nThere.", False),
        ("<tool_call>\nnothing", False),
        (call({"city": "Lund"}) + "\n", True),
        (BARE % '{"city": "Lund"}', True),
        (f"```json\n{BARE}\n```" % '{"city": "Lund", "days": 3}', True),
        ('{\n  "name": "get_all",\n  "arguments": {}\n}\n', True),
        (BARE % '{"city": 5}', False),
        (f"```json\n{BARE}\n```\nThere." % '{"city": "Lund"}', False),
        (f"So: {BARE}" % '{"city": 5}', True),  # is text, as it does not begin the answer
        ('{"name": "Ada", "arguments": 7}', True),
        ('```json\n{"sky": "grey"}\n```', True),
    ],
)
def test_text_is_free_and_calls_are_not(text: str, fine: bool) -> None:
    assert accepts(text) == fine


def test_a_call_may_be_required_and_alone() -> None:
    one, two = call({"city": "Lund"}), call({"city": "Lund"}, times=2)
    assert accepts(one, required=True)
    assert accepts(two, required=True)
    assert not accepts(two, required=True, several=False)
    assert not accepts("Let me see.\n" + one, required=True)
    assert not accepts("It is grey.", required=True)


@pytest.mark.parametrize("required", [True, False])
def test_a_call_is_written_in_the_tokens_that_were_added_for_it(
    made_tokenizer: Callable[[str], Any], required: bool
) -> None:
    """As they are; letter by letter it is a call as well, unless one has to come."""
    tokenizer = made_tokenizer(templates.HERMES)
    tokens = Calling(ChatTemplate(tokenizer)).tokens
    vocabulary = vocabulary_of(tokenizer, len(tokenizer), {tokenizer.eos_token_id})
    start = LLMatcher(vocabulary, inspect(calls_constraint(HERMES, TOOLS, tokens, required=required)), log_level=0)

    def fine(ids: list[int]) -> bool:
        matcher = start.deep_copy()
        return matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting()

    words = vocabulary.tokenize_str
    opening, closing = tokens["<tool_call>"], tokens["</tool_call>"]
    body = call({"city": "Lund"}).removeprefix("<tool_call>").removesuffix("</tool_call>")
    assert fine([opening, *words(body), closing])
    assert fine([*words("<tool_call>" + body), closing]) != required
    assert not fine([*words("<tool_call>\nnothing"), closing])
    assert not fine([opening, *words("\nnothing")])
    assert fine(words("It is grey.")) != required


@pytest.mark.parametrize("written", [LLAMA, MISTRAL])
def test_other_formats(written: CallFormat) -> None:
    assert accepts(call({"city": "Lund"}, written=written), written)
    assert not accepts(call({"city": 1}, written=written), written)
    assert accepts("It is grey.", written)
    assert accepts("", written)
    assert accepts(call({"city": "Lund"}, written=written, times=2), written) == (written.between is not None)


def test_an_answer_without_calls_may_have_a_schema() -> None:
    schema = {"type": "object", "properties": {"sky": {"type": "string"}}, "required": ["sky"]}
    assert accepts('{"sky": "grey"}', answer=schema)
    assert accepts(call({"city": "Lund"}), answer=schema)
    assert not accepts("It is grey.", answer=schema)


BAD: list[tuple[str, dict[str, Any]]] = [
    ("contradictory", {"type": "object", "properties": {"a": {"type": "string", "enum": [5]}}, "required": ["a"]}),
    ("no end", {"$defs": {"n": {"type": "object", "properties": {"n": {"$ref": "#/$defs/n"}}, "required": ["n"]}}}
     | {"type": "object", "properties": {"n": {"$ref": "#/$defs/n"}}, "required": ["n"]}),
    ("huge", {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(20_000)}}),
    ("unknown reference", {"type": "object", "properties": {"a": {"$ref": "#/$defs/none"}}}),
    ("another address", {"type": "object", "properties": {"a": {"$ref": "https://example.org/schema"}}}),
    ("wrong", {"type": "object", "properties": {"a": {"type": "text"}}}),
    ("no object", {"type": "array"}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "schema"), BAD, ids=[name for name, _ in BAD])
def test_schemas_that_cannot_be_used_are_named_with_their_tool(name: str, schema: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match="'evil'") as caught:
        Tool("evil", "", schema, "tools.0.function.parameters").check()
    assert caught.value.param == "tools.0.function.parameters"


def test_a_schema_nested_beyond_reason_is_named() -> None:
    schema: dict[str, Any] = {"type": "object"}
    for _ in range(3000):
        schema = {"type": "object", "properties": {"a": schema}}
    with pytest.raises(InvalidRequest, match="'evil'"):
        Tool("evil", "", schema).check()


def test_a_recursive_schema_is_fine() -> None:
    tree = {
        "type": "object",
        "properties": {"name": {"type": "string"}, "kids": {"type": "array", "items": {"$ref": "#/$defs/t"}}},
    }
    Tool("grow", "", {"$defs": {"t": tree}, **tree}).check()
    constraint = calls_constraint(HERMES, [Tool("grow", "", {"$defs": {"t": tree}, **tree})], {}, required=True)
    matcher = LLMatcher(LLTokenizer("byte"), inspect(constraint), log_level=0)
    data = list(call({"name": "a", "kids": [{"name": "b", "kids": []}]}, "grow").encode())
    assert matcher.try_consume_tokens(data) == len(data)


def test_a_choice_of_a_tool_that_is_not_there_is_named() -> None:
    with pytest.raises(InvalidRequest, match="'none'"):
        ToolChoice("required", ("none",)).of(TOOLS)
    assert ToolChoice("auto", ("get",)).of(TOOLS) == TOOLS[:1]
    assert ToolChoice("none").of(TOOLS) == []


def test_constraints_are_json_throughout() -> None:
    """Names and schemas go into the grammar as literals: nothing in them ends one."""
    tool = Tool("get", "", {"type": "object", "properties": {'"}\nstart: /x/': {"const": "%json }"}}, "required": []})
    constraint = calls_constraint(HERMES, [tool], {}, required=True)
    inspect(constraint)
    assert json.dumps('"}\nstart: /x/') in constraint.text

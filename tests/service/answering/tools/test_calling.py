"""Templates with tools are recognised by what they write; the others are told of tools in words."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from service.answering.prompting.template import ChatTemplate
from service.answering.tools.calling import HERMES, CallFormat, Calling
from service.answering.tools.definitions import Tool
from tests.service.answering.prompting import templates

TOOL = Tool("get_weather", "The weather.", {"type": "object", "properties": {"city": {"type": "string"}}})


def calling(tokenizer: Any) -> Calling:
    return Calling(ChatTemplate(tokenizer))


@pytest.mark.parametrize(
    ("template", "written"),
    [
        (templates.HERMES, HERMES),
        (templates.LLAMA, CallFormat("", None, "", "parameters")),
        (templates.MISTRAL, CallFormat("[TOOL_CALLS] [", ", ", "]")),
    ],
)
def test_the_format_is_the_templates_own(
    made_tokenizer: Callable[[str], Any], template: str, written: CallFormat
) -> None:
    found = calling(made_tokenizer(template))
    assert found.by_template
    assert found.format == written


def test_added_tokens_of_a_format_are_known(made_tokenizer: Callable[[str], Any]) -> None:
    tokenizer = made_tokenizer(templates.MISTRAL)
    spoken = {"[TOOL_CALLS]": tokenizer.convert_tokens_to_ids("[TOOL_CALLS]")}
    assert calling(tokenizer).tokens == calling(tokenizer).unsaid == spoken
    tokenizer = made_tokenizer(templates.HERMES)
    tags = ["<tool_call>", "</tool_call>"]
    assert calling(tokenizer).tokens == dict(zip(tags, tokenizer.convert_tokens_to_ids(tags), strict=True))
    assert calling(tokenizer).unsaid == {}  # decoding shows them


def test_a_template_without_tools_is_told_in_words(made_tokenizer: Callable[[str], Any]) -> None:
    found = calling(made_tokenizer(templates.CHATML))
    call = {"id": "1", "type": "function", "function": {"name": "get_weather", "arguments": {"city": "Lund"}}}
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": "", "tool_calls": [call, call]},
        {"role": "tool", "content": "grey", "tool_call_id": "1"},
        {"role": "tool", "content": "wet", "tool_call_id": "2"},
        {"role": "user", "content": "Thanks."},
    ]
    told, definitions = found.told(messages, [TOOL])
    assert not found.by_template
    assert definitions == []
    assert [message["role"] for message in told] == ["system", "user", "assistant", "user"]
    assert told[0]["content"].startswith("Be brief.\n\n")
    assert json.dumps(TOOL.definition()) in told[0]["content"]
    assert told[2]["content"] == HERMES.written([call["function"]] * 2)  # type: ignore[list-item]
    assert told[3]["content"] == (
        "<tool_response>\ngrey\n</tool_response>\n<tool_response>\nwet\n</tool_response>\nThanks."
    )


def test_a_template_whose_calls_are_no_json_is_told_in_words(made_tokenizer: Callable[[str], Any]) -> None:
    xml = templates.HERMES.replace('{"name": "', "<name>")
    assert not calling(made_tokenizer(xml)).by_template

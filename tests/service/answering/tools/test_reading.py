"""Text and calls out of an answer, in whatever pieces it comes."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.answering.tools.calling import HERMES, CallFormat
from service.answering.tools.reading import CallReader
from service.engine.outputs import TokenOutput

LLAMA = CallFormat("", None, "", "parameters")
MISTRAL = CallFormat("[TOOL_CALLS] [", ", ", "]")
ARGUMENTS: list[dict[str, Any]] = [{}, {"a": 'brace } and "quote" \\ {'}, {"deep": {"deeper": [{"x": "}}"}]}, "ü": 1}]


def read(
    written: CallFormat, text: str, cuts: list[int], names: tuple[str, ...] = ("f", "f_0")
) -> tuple[str, list[tuple[str, Any]]]:
    reader = CallReader(written, {}, names)
    places = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    said, calls = "", list[list[str]]()
    pieces = [text[start:end] for start, end in pairwise(places)] or [""]
    for at, piece in enumerate(pieces):
        more, found = reader.feed(TokenOutput("r", [], piece, finished=at == len(pieces) - 1))
        said += more
        for one in found:
            if one.id:
                assert one.index == len(calls)
                calls.append([one.name, ""])
            calls[one.index][1] += one.arguments
    assert reader.calls == len(calls)
    return said, [(name, json.loads(arguments)) for name, arguments in calls]


@given(
    cuts=st.lists(st.integers(0, 400), max_size=30),
    which=st.lists(st.sampled_from(ARGUMENTS), min_size=1, max_size=3),
    text=st.sampled_from(["", "I'll look.", "a < b <tool_", "{ no", "two\n\nlines"]),
    written=st.sampled_from([HERMES, MISTRAL]),
)
def test_text_and_calls_in_any_pieces(cuts: list[int], which: list[Any], text: str, written: CallFormat) -> None:
    calls = [{"name": f"f_{at}", "arguments": arguments} for at, arguments in enumerate(which)]
    said, found = read(written, (text + "\n" if text else "") + written.written(calls), cuts)
    assert said == text
    assert found == [(call["name"], call["arguments"]) for call in calls]


@pytest.mark.parametrize("written", [HERMES, LLAMA, MISTRAL])
@settings(max_examples=30, deadline=None)
@given(cuts=st.lists(st.integers(0, 60), max_size=20))
def test_text_without_calls_is_given_whole(written: CallFormat, cuts: list[int]) -> None:
    text = "It is grey, a <tool_ and a [TOOL_ too. \n"
    assert read(written, text, cuts) == (text, [])


@pytest.mark.parametrize("around", ["%s", "```json\n%s\n```", "\n```\n%s\n```\n"])
@pytest.mark.parametrize("indent", [None, 2])
@settings(max_examples=20, deadline=None)
@given(cuts=st.lists(st.integers(0, 200), max_size=20), arguments=st.sampled_from(ARGUMENTS))
def test_a_call_without_the_formats_opening(
    around: str, indent: int | None, cuts: list[int], arguments: dict[str, Any]
) -> None:
    text = around % json.dumps({"name": "f", "arguments": arguments}, indent=indent)
    assert read(HERMES, text, cuts, ("e", "f")) == ("", [("f", arguments)])
    assert read(HERMES, text, cuts, ("e",)) == (text, [])
    assert read(HERMES, f"So: {text}", cuts, ("e", "f")) == (f"So: {text}", [])


@settings(max_examples=20, deadline=None)
@given(cuts=st.lists(st.integers(0, 60), max_size=20))
def test_a_call_that_begins_the_answer(cuts: list[int]) -> None:
    text = LLAMA.written([{"name": "f", "arguments": ARGUMENTS[1]}])
    assert read(LLAMA, text, cuts) == ("", [("f", ARGUMENTS[1])])


def test_a_call_that_is_cut_off_gives_what_there_is() -> None:
    reader = CallReader(HERMES, {})
    text, found = reader.feed(TokenOutput("r", [], '<tool_call>\n{"name": "f", "arguments": {"a": "b', finished=True))
    assert text == ""
    assert [piece.name for piece in found] == ["f", ""]
    assert found[1].arguments == '{"a": "b'


def test_a_special_token_is_known_by_its_id() -> None:
    reader = CallReader(MISTRAL, {"[TOOL_CALLS]": 7})
    first = reader.feed(TokenOutput("r", [1, 7], "Hm.", pieces=["Hm.", ""]))
    rest = ' [{"name": "f", "arguments": {}}]'
    second = reader.feed(TokenOutput("r", [2], rest, finished=True, pieces=[rest]))
    assert first == ("Hm.", [])
    assert [piece.name for piece in second[1]] == ["f", ""]

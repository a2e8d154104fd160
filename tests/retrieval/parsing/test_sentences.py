"""Sentences and paragraphs are exact, trimmed slices that leave no word out."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval.parsing.sentences import paragraphs, sentences

TEXTS = st.lists(
    st.sampled_from(["Dr. Who", "left", " ", "\r\n", "\n\n", ".", "?", '"', "A", "1.", "- x", "[1]", "。", "\t"])
    | st.text(max_size=6)
).map("".join)


@given(TEXTS)
def test_sentences_tile_the_text(text: str) -> None:
    spans = list(sentences(text))
    assert all(text[start:end] == text[start:end].strip() != "" for start, end in spans)
    assert all(left[1] <= right[0] for left, right in itertools.pairwise(spans))
    assert "".join("".join(text[start:end].split()) for start, end in spans) == "".join(text.split())


@given(TEXTS, TEXTS)
def test_a_slice_is_split_as_a_text_of_its_own(before: str, text: str) -> None:
    start, end = len(before) + 1, len(before) + 1 + len(text)
    shifted = [(first - start, last - start) for first, last in sentences(f"{before}\n{text} After.", start, end)]
    assert shifted == list(sentences(text))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("By\n\nJ. S. Mill. Then", ["By", "J. S. Mill.", "Then"]),
        ("Mr. Smith of the U.S. came. He sat.", ["Mr. Smith of the U.S. came.", "He sat."]),
        ("«Oui.» Non… Peut-être!", ["«Oui.»", "Non…", "Peut-être!"]),
        ("雨が降る。「行こう。」彼は", ["雨が降る。", "「行こう。」", "彼は"]),
        ("It stands.[12] The next [1]. See (3). Then", ["It stands.[12]", "The next [1].", "See (3).", "Then"]),
        ("Bought coins. [1, 2] They shone.", ["Bought coins. [1, 2]", "They shone."]),
        ("Items:\r\n- one\r\n- two", ["Items:", "- one", "- two"]),
        ("Do this:\n1. Go.\n2. Come\n3. Stay (a. b.)", ["Do this:", "1. Go.", "2. Come", "3. Stay (a. b.)"]),
        ("We know √\n2. It is\n4) or less.", ["We know √\n2.", "It is\n4) or less."]),
    ],
)
def test_where_sentences_end(text: str, expected: list[str]) -> None:
    assert [text[start:end] for start, end in sentences(text)] == expected


def test_sentence_rules() -> None:
    text = (
        'Mr. Smith met Dr. J. K. Jones, e.g. at No. 5 St. James Street. "Is it so?" he asked. It was 3.5 m!\r\n'
        "Was it? Yes.\r\n\r\nA new paragraph without a stop\n\nThe end. これは文です。次の文です。"
    )
    assert [text[slice(*span)] for span in sentences(text)] == [
        "Mr. Smith met Dr. J. K. Jones, e.g. at No. 5 St. James Street.",
        '"Is it so?" he asked.',
        "It was 3.5 m!",
        "Was it?",
        "Yes.",
        "A new paragraph without a stop",
        "The end.",
        "これは文です。",
        "次の文です。",
    ]


def test_windows_line_ends_do_not_end_paragraphs() -> None:
    assert list(paragraphs("one\r\ntwo\r\n\r\nthree")) == [(0, 8), (12, 17)]

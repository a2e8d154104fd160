"""Sentences are exact slices of their text, and together hold every word of it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.reader.sentences import LONGEST, split

TEXTS = st.lists(
    st.sampled_from(["Dr. Who", "left", " ", "  ", "\n", "\n\n", ".", "?", '"', "!", "A", "b", "é", "1.", "- x", ", "])
    | st.text(max_size=6)
).map("".join)


@given(TEXTS)
def test_sentences_are_slices_in_order_and_their_offsets_name_their_characters(text: str) -> None:
    last = 0
    for sentence in split(text):
        assert last <= sentence.start < sentence.end <= len(text)
        last = sentence.end
        assert " ".join(text[sentence.start : sentence.end].split()) == sentence.words
        assert len(sentence.offsets) == len(sentence.words)
        for offset, character in zip(sentence.offsets, sentence.words, strict=True):
            found = text[sentence.start + offset]
            assert found == character or (character == " " and found.isspace())


@given(TEXTS)
def test_no_letter_is_lost(text: str) -> None:
    kept = "".join(sentence.words for sentence in split(text))
    assert [c for c in kept if c.isalnum()] == [c for c in text if c.isalnum()]


@given(TEXTS, st.data())
def test_a_part_of_a_sentence_maps_back_to_the_text(text: str, data: st.DataObject) -> None:
    for sentence in split(text):
        begin = data.draw(st.integers(0, len(sentence.words) - 1))
        finish = data.draw(st.integers(begin + 1, len(sentence.words)))
        start, end = sentence.span(begin, finish)
        assert " ".join(text[start:end].split()) == " ".join(sentence.words[begin:finish].split())


def test_long_text_without_an_end_is_cut_into_pieces_the_reader_knows() -> None:
    assert max(len(s.words) for s in split("word " * 500)) <= LONGEST
    assert max(len(s.words) for s in split("x" * 5000)) <= LONGEST


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One. Two.", ["One.", "Two."]),
        ("Mr. Smith came. He sat.", ["Mr. Smith came.", "He sat."]),
        ("By J. S. Mill. Then", ["By J. S. Mill.", "Then"]),
        ('"Yes." He left.', ['"Yes."', "He left."]),
        ("Title\n\nText goes\non here.", ["Title", "Text goes on here."]),
        ("Items:\n- one\n- two", ["Items:", "- one", "- two"]),
        ("Pi is 3.14 or so.", ["Pi is 3.14 or so."]),
        ("***", []),
    ],
)
def test_where_sentences_end(text: str, expected: list[str]) -> None:
    assert [s.words for s in split(text)] == expected

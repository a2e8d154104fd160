"""Quotations are found again over what printing does to text, and over nothing else."""

from __future__ import annotations

import itertools
import random
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval.parsing.sentences import sentences
from service.answering.citations import align, align_elided, check, spans_in_answer, unsupported
from service.answering.passages import Passage, Span, canonical

TEXT = (
    "The exam-\nple of ﬁnesse — “well-\nknown” in 1887 — costs 1234 coins.  The café was closed.\n"
    "A second sentence follows, and it isn’t long."
)


def passage(text: str = TEXT, start: int = 100, document: str = "d1") -> Passage:
    return Passage(document, "name", start, start + len(text), 3, text)


@pytest.mark.parametrize(
    ("quote", "found"),
    [
        ("example of finesse", "exam-\nple of ﬁnesse"),
        ('finesse - "well-known" in 1887', "ﬁnesse — “well-\nknown” in 1887"),
        ("exam- ple of", "exam-\nple of"),
        ("Example of finesse", "exam-\nple of ﬁnesse"),
        ("costs 1234 coins. The cafe\u0301", "costs 1234 coins.  The café"),
        ("it isn't long,", "it isn’t long"),
        ("in 1887 -- costs", "in 1887 — costs"),
    ],
)
def test_alignment_forgives_printing(quote: str, found: str) -> None:
    span = align(quote, TEXT)
    assert span is not None
    assert TEXT[slice(*span)] == found


@pytest.mark.parametrize(
    "quote",
    [
        "costs 123",
        "costs 12345 coins",
        "in 1888",
        "The cafe was closed",
        "example in finesse",
        "isnt long",
        "second  sentenc",
        "",
    ],
)
def test_alignment_forgives_nothing_else(quote: str) -> None:
    assert align(quote, TEXT) is None


def test_superscripts_are_not_digits() -> None:
    assert align("a field of 102 units", "a field of 10² units") is None


def test_an_ellipsis_parts_a_quotation() -> None:
    spans = align_elided("the example … 1234 coins", TEXT)
    assert [TEXT[a:b] for a, b in spans] == ["The exam-\nple", "1234 coins"]
    assert align_elided("1234 coins … the example", TEXT) == []


def test_spans_quote_and_refer() -> None:
    answer = 'It was "example of finesse," [1]. It is costing coins [1]. He said "made up words here" [1]. See [7].'
    quoted, referred, invented = spans_in_answer(answer, [passage()])
    assert (quoted.start, quoted.cited_text, quoted.quoted) == (104, "exam-\nple of ﬁnesse", True)
    assert not referred.quoted
    assert referred.cited_text == TEXT[referred.start - 100 : referred.end - 100]
    assert "costs 1234 coins" in referred.cited_text
    assert invented.cited_text == "made up words here"
    assert answer[invented.answer_start : invented.answer_end] == '"made up words here"'


def test_a_mislabelled_quotation_is_cited_where_it_stands() -> None:
    other = Passage("d2", "other", 0, 20, None, "Nothing to see here.")
    (span,) = spans_in_answer('"the café was closed" [1]', [other, passage()])
    assert (span.document, span.label) == ("d1", 2)


def test_scare_quotes_are_no_citation() -> None:
    assert spans_in_answer('The so-called "bridge" stands.', [passage()]) == []


def test_check_compares_with_the_store() -> None:
    span = Span("d1", 5, 9, None, "word")
    assert check(span, "word", 1).verified
    assert not check(span, "Word", 1).verified
    assert not check(span, None, 1).verified
    assert not check(Span("d1", 5, 5, None, ""), "", 1).verified


def test_sentences_without_support_are_named() -> None:
    answer = 'The "café was closed" [1]. Unicorns graze on the moon. The second sentence follows.'
    spans = spans_in_answer(answer, [passage()])
    assert [answer[a:b] for a, b in unsupported(answer, spans, [passage()])] == ["Unicorns graze on the moon."]


@given(st.text(max_size=60), st.text(max_size=200))
@settings(max_examples=200)
def test_alignment_never_fails_and_is_in_bounds(quote: str, text: str) -> None:
    span = align(quote, text)
    if span is not None:
        assert 0 <= span[0] < span[1] <= len(text)


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(1, 20)), max_size=8))
def test_canonical_order_joins_and_keeps_the_text(cuts: list[tuple[int, int]]) -> None:
    text = "".join(chr(97 + i % 26) for i in range(60))
    given_ = [Passage("d", "n", a, a + n, None, text[a : a + n]) for a, n in cuts]
    joined = canonical(given_)
    assert joined == canonical(reversed(given_))
    assert all(p.text == text[p.start : p.end] for p in joined)
    assert all(a.end < b.start for a, b in itertools.pairwise(joined))
    assert {i for p in given_ for i in range(p.start, p.end)} == {i for p in joined for i in range(p.start, p.end)}


def mangle(words: str, rng: random.Random) -> str:
    """What printing does: ligatures, hyphenation, line breaks, curly quotes, dashes."""
    text = re.sub(r"\s+", lambda _: rng.choice([" ", "\n", "  "]), words)
    text = text.replace("fi", "ﬁ").replace("fl", "ﬂ") if rng.random() < 0.5 else text
    long = list(re.finditer(r"[a-z]{7,}", text))
    if long and rng.random() < 0.5:
        at = rng.choice(long).start() + 3
        text = f"{text[:at]}-\n{text[at:]}"
    return text.replace("'", "’") if rng.random() < 0.5 else text


def test_mangled_quotations_of_a_book_are_found_and_near_misses_are_not(shared: Path) -> None:
    """500 quotations: at least 99% at the right span; 500 with one word changed: none found."""
    text = (shared / "corpus" / "news_from_nowhere.txt").read_text(encoding="utf-8-sig")[:150_000]
    rng = random.Random(7)
    found = [(a, b) for a, b in sentences(text) if 40 <= b - a <= 300]
    right = false = 0
    for start, end in rng.sample(found, 500):
        quote = text[start:end]
        span = align(mangle(quote, rng), text)
        right += span is not None and "".join(text[slice(*span)].split()) == "".join(quote.split())
        words = quote.split()
        at = rng.randrange(1, len(words) - 1)
        words[at] = words[at] + "x" if words[at][-1:].isalpha() else "other"
        false += align(" ".join(words), text) is not None
    assert right >= 495
    assert false == 0

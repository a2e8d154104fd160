"""What an answer cites, what it leaves bare, and what of it stands in the store."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from service.answering.citations import check, spans_in_answer, unsupported
from service.answering.passages import Passage, Span, canonical

TEXT = (
    "The exam-\nple of ﬁnesse — “well-\nknown” in 1887 — costs 1234 coins.  The café was closed.\n"
    "A second sentence follows, and it isn’t long."
)


def passage(text: str = TEXT, start: int = 100, document: str = "d1") -> Passage:
    return Passage(document, "name", start, start + len(text), 3, text)


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


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(1, 20)), max_size=8))
def test_canonical_order_joins_and_keeps_the_text(cuts: list[tuple[int, int]]) -> None:
    text = "".join(chr(97 + i % 26) for i in range(60))
    given_ = [Passage("d", "n", a, a + n, None, text[a : a + n]) for a, n in cuts]
    joined = canonical(given_)
    assert joined == canonical(reversed(given_))
    assert all(p.text == text[p.start : p.end] for p in joined)
    assert all(a.end < b.start for a, b in itertools.pairwise(joined))
    assert {i for p in given_ for i in range(p.start, p.end)} == {i for p in joined for i in range(p.start, p.end)}

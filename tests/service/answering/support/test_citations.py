"""What of an answer's citations stands in the store, and the order of evidence."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from service.answering.passages import Passage, Span, canonical
from service.answering.support.citations import check


def test_check_compares_with_the_store() -> None:
    span = Span("d1", 5, 9, None, "word")
    assert check(span, "word", 1).verified
    assert not check(span, "Word", 1).verified
    assert not check(span, None, 1).verified
    assert not check(Span("d1", 5, 5, None, ""), "", 1).verified


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(1, 20)), max_size=8))
def test_canonical_order_joins_and_keeps_the_text(cuts: list[tuple[int, int]]) -> None:
    text = "".join(chr(97 + i % 26) for i in range(60))
    given_ = [Passage("d", "n", a, a + n, None, text[a : a + n]) for a, n in cuts]
    joined = canonical(given_)
    assert joined == canonical(reversed(given_))
    assert all(p.text == text[p.start : p.end] for p in joined)
    assert all(a.end < b.start for a, b in itertools.pairwise(joined))
    assert {i for p in given_ for i in range(p.start, p.end)} == {i for p in joined for i in range(p.start, p.end)}

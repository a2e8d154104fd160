"""BM25 held to rank-bm25, the reference, and to bm25s, whose postings it sums."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence

import bm25s
import numpy as np
from hypothesis import assume, given
from hypothesis import strategies as st
from rank_bm25 import BM25Okapi

from retrieval.analysis.terms import chunk_terms
from retrieval.index.hybrid import top
from retrieval.index.sparse import K1, B, SparseIndex

TOLERANCE = 1e-5
WORDS = [f"w{n}" for n in range(40)]

logging.getLogger("bm25s").setLevel(logging.WARNING)  # of an index for every example

documents = st.lists(st.lists(st.sampled_from(WORDS), max_size=30), min_size=1, max_size=40)
queries = st.lists(st.sampled_from([*WORDS, "unheard"]), max_size=8)
"""terms may be asked twice, and may occur nowhere"""


def rank_bm25(corpus: Sequence[Sequence[str]]) -> BM25Okapi:
    """The matching variant: epsilon 0, as ATIRE weights with a Robertson idf that is cut off at 0."""
    return BM25Okapi(corpus, k1=K1, b=B, epsilon=0)


def same_ranking(ours: np.ndarray, theirs: np.ndarray) -> None:
    """Every chunk that the reference places apart by more than the tolerance is placed so; equals go by row."""
    rows = np.arange(len(ours))
    for k in (1, 3, len(rows)):
        found = top(ours, rows, k)
        np.testing.assert_allclose(theirs[found], np.sort(theirs)[::-1][:k], atol=2 * TOLERANCE)
        assert all(a < b for a, b in itertools.pairwise(found) if ours[a] == ours[b])


@given(documents, queries)
def test_bm25_scores_and_ranks_as_rank_bm25(corpus: list[list[str]], query: list[str]) -> None:
    """Terms of more than half of the documents, whose idf is cut off at 0, and empty documents included."""
    assume(any(corpus))
    expected = rank_bm25(corpus).get_scores(query)
    actual = SparseIndex.build(corpus, method="atire", idf_method="robertson").scores(query)
    np.testing.assert_allclose(actual, expected, atol=TOLERANCE)
    same_ranking(actual, expected)


@given(documents, queries, st.sampled_from([("lucene", None), ("atire", "robertson"), ("robertson", None)]))
def test_bm25_scores_are_bm25s_own(corpus: list[list[str]], query: list[str], variant: tuple[str, str | None]) -> None:
    assume(any(corpus))
    model = bm25s.BM25(k1=K1, b=B, method=variant[0], idf_method=variant[1])
    model.index(corpus, show_progress=False)
    known = [term for term in query if any(term in document for document in corpus)]
    expected = model.get_scores(known) if known else np.zeros(len(corpus))
    actual = SparseIndex.build(corpus, method=variant[0], idf_method=variant[1]).scores(query)
    np.testing.assert_allclose(actual, expected, atol=TOLERANCE)


@given(documents, queries)
def test_bm25_of_lucene_is_its_formula(corpus: list[list[str]], query: list[str]) -> None:
    """The default variant, whose idf is never negative, computed term by term."""
    assume(any(corpus))
    lengths = np.array([len(document) for document in corpus])
    expected = np.zeros(len(corpus))
    for term in query:
        counts = np.array([document.count(term) for document in corpus])
        holding = np.count_nonzero(counts)
        idf = np.log1p((len(corpus) - holding + 0.5) / (holding + 0.5))
        expected += idf * counts / (counts + K1 * (1 - B + B * lengths / lengths.mean()))
    np.testing.assert_allclose(SparseIndex.build(corpus).scores(query), expected, atol=TOLERANCE)


def test_bm25_of_real_text_is_rank_bm25s(shared) -> None:
    """A book in paragraphs, analysed as the library does, with questions made of its own words."""
    text = (shared / "corpus" / "news_from_nowhere.txt").read_text(encoding="utf-8")
    corpus = [found for _, found in chunk_terms([("", "", part) for part in text.split("\n\n")]) if found]
    reference, index = rank_bm25(corpus), SparseIndex.build(corpus, method="atire", idf_method="robertson")
    rng = np.random.default_rng(0)
    for document in rng.choice(len(corpus), 20, replace=False):
        query = corpus[document][:12]
        expected, actual = reference.get_scores(query), index.scores(query)
        np.testing.assert_allclose(actual, expected, atol=TOLERANCE)
        same_ranking(actual, expected)

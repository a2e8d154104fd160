"""How well search finds the gold sentences: the library's modes, beside bm25s and the encoder over naive chunks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from eval.harness.summary import score
from eval.qa.corpus import Corpus, Span, windows
from eval.qa.dataset import Item
from eval.qa.judging import search_query
from retrieval.library import Library

DEPTH = 10
WORDS = 200
CHARACTERS = 400
"""Words of a naive chunk; characters of one of a text without spaces."""
STEMMERS = {"ar": "arabic", "de": "german", "en": "english", "es": "spanish"}
STOP_WORDS = {"de", "en", "es"}
"""languages for which bm25s knows stop words by their code"""
_CLIENTS = 8

Ranking = list[list[Span]]
"""Spans by falling score, for each question."""


def rankings(corpus: Corpus, items: Sequence[Item], rerank: bool) -> Iterator[tuple[str, Ranking]]:
    """What each way of searching finds for the questions, all documents in scope.

    rerank: also in the ranker's order.
    """
    queries = [search_query(item) for item in items]
    for name, options in library_modes(rerank).items():
        yield name, searched(corpus, queries, DEPTH, **options)
    chunks = windows(corpus.texts, WORDS, CHARACTERS)
    texts = [corpus.text(chunk) for chunk in chunks]
    language = Counter(item.language for item in items).most_common(1)[0][0]
    for name, scores in (
        ("bm25s, naive chunks", _bm25s(texts, queries, language)),
        ("encoder alone, naive chunks", _encoder(corpus.library, texts, queries)),
    ):
        best = np.argsort(-scores, axis=1, kind="stable")[:, :DEPTH]
        yield name, [[chunks[row] for row in rows] for rows in best.tolist()]


def library_modes(rerank: bool) -> dict[str, dict[str, Any]]:
    """Options of `Library.search` by the name of the row."""
    modes: dict[str, dict[str, Any]] = {mode: {"mode": mode} for mode in ("sparse", "dense", "hybrid")}
    return {**modes, "hybrid+rerank": {"mode": "hybrid", "rerank": True}} if rerank else modes


def searched(
    corpus: Corpus, queries: Sequence[str], k: int, documents: Sequence[str] | None = None, **options: Any
) -> Ranking:
    """The best k chunks of each query.

    Args:
        documents: names, one a query, of the document that it searches alone; None for all.
    """

    def search(query: str, name: str | None) -> list[Span]:
        scope = None if name is None else [corpus.ids[name]]
        found = corpus.library.search(query, k, documents=scope, **options)
        return [(corpus.names[hit.document], hit.start, hit.end) for hit in found.hits]

    names: Sequence[str | None] = documents if documents is not None else [None] * len(queries)
    with ThreadPoolExecutor(_CLIENTS) as pool:  # the library runs together what is asked together
        return list(pool.map(search, queries, names))


def figures(corpus: Corpus, items: Sequence[Item], found: Ranking) -> dict[str, Any]:
    """hit@1, hit@5, MRR@10 of the gold sentence, and hit@1, hit@5 of its document; percent with standard errors.

    Questions without an answer are left out.
    """
    asked = [(item, spans) for item, spans in zip(items, found, strict=True) if not item.unanswerable]
    ranks = [_rank([corpus.covers([span], item) for span in spans]) for item, spans in asked]
    homes = [_rank([name == item.document for name, _, _ in spans]) for item, spans in asked]
    return {
        "n": len(asked),
        "hit@1": score([float(rank == 1) for rank in ranks]),
        "hit@5": score([float(0 < rank <= 5) for rank in ranks]),
        "mrr@10": score([1 / rank if rank else 0.0 for rank in ranks]),
        "document@1": score([float(rank == 1) for rank in homes]),
        "document@5": score([float(0 < rank <= 5) for rank in homes]),
    }


def _rank(right: Sequence[bool]) -> int:
    """Of the first that is right, from 1; 0 where none is."""
    return right.index(True) + 1 if True in right else 0


def _bm25s(texts: Sequence[str], queries: Sequence[str], language: str) -> np.ndarray:
    """float32[queries, texts] of bm25s with its own tokenizer, and the stop words and stemmer that it has for them."""
    import bm25s
    import Stemmer

    stemmer = Stemmer.Stemmer(STEMMERS[language]) if language in STEMMERS else None
    told: dict[str, Any] = {"stemmer": stemmer, "show_progress": False}
    told["stopwords"] = language if language in STOP_WORDS else []
    index = bm25s.BM25()
    index.index(bm25s.tokenize(list(texts), **told), show_progress=False)
    asked = bm25s.tokenize(list(queries), return_ids=False, **told)
    return np.stack([index.get_scores(words) if words else np.zeros(len(texts), np.float32) for words in asked])


def _encoder(library: Library, texts: Sequence[str], queries: Sequence[str]) -> np.ndarray:
    return library.embedder.encode_queries(queries) @ library.embedder.encode_documents(texts).T

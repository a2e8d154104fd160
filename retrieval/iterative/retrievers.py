"""Folio's indexes as the loops of ``speculation.py`` use them: search in batches, score single chunks, same bits.

A score depends on the query and the chunk alone, never on what else is asked or ranked, so that a chunk in a cache and
the same chunk in a search have equal scores, and the best of a cache is the best of the index where it is in the cache.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from retrieval.analysis.terms import terms
from retrieval.common.threads import threads
from retrieval.embedding.encoding import CosineWeight
from retrieval.index import gpu_clone
from retrieval.index.dense import DenseIndex, cosines
from retrieval.index.hybrid import select, top
from retrieval.index.searching import search_together
from retrieval.index.snapshot import Query, Scope, Snapshot
from retrieval.index.sparse import SparseIndex
from retrieval.types import Mode

Encode = Callable[[Sequence[str]], np.ndarray]
"""n texts → float32[n, d] of norm 1"""

Fit = Callable[[str], tuple[str, int]]
"""a text → its end that the encoder reads whole, and how many tokens that leaves out"""

Weigh = Callable[[str], CosineWeight]
"""what the cosines of a query count in hybrid search"""

SPARE = 8
"""candidates beyond k that FAISS is asked for: it rounds a batch otherwise than single queries, and near the k-th place
that may decide who is returned"""


_NONE = np.empty(0, dtype=np.float32)
_EVERY = np.empty(0, dtype=bool)


class DenseRetriever:
    """Any FAISS index: Flat, IVF, HNSW, by FAISS' own search but for a batch on Flat. Chunk ids are the index' own."""

    def __init__(self, index: DenseIndex, encode: Encode) -> None:
        self._index = index
        self._encode = encode
        self._ids = index.ids
        self._order = np.argsort(self._ids)

    def query(self, text: str) -> np.ndarray:
        """float32[d]."""
        return self._encode([text])[0]

    def search(self, queries: Sequence[np.ndarray], k: int) -> list[np.ndarray]:
        """See ``speculation.Retriever``."""
        vectors = np.stack(queries)
        if self._index.exact and len(queries) > 1 and not gpu_clone.enabled():
            return self._scanned(vectors, k)
        found = self._index.search(vectors, k + SPARE)
        return [self._best(query, ids[ids >= 0], k) for query, ids in zip(queries, found, strict=True)]

    def _scanned(self, queries: np.ndarray, k: int) -> list[np.ndarray]:
        """One product of matrices for all queries; FAISS' own takes several times as long for 16 as for one."""
        margin = 2 * self._index.error

        def best(at: int) -> np.ndarray:
            rows = select(scores[at], _NONE, _EVERY, 1.0, 0.0, 0.0, -np.inf, min(k, len(self._ids)), margin)
            return self._best(queries[at], self._ids[rows], k)

        scores = self._index.scores(queries)
        return list(threads().map(best, range(len(queries))))

    def score(self, query: np.ndarray, ids: np.ndarray) -> np.ndarray:
        """See ``speculation.Retriever``."""
        rows = self._order[np.searchsorted(self._ids, ids, sorter=self._order)]
        return cosines(self._index.vectors(rows, ids), query).astype(np.float64)

    def likeness(self, query: np.ndarray, other: np.ndarray) -> float:
        """See ``speculation.Retriever``: the cosine."""
        return float(query @ other)

    def _best(self, query: np.ndarray, ids: np.ndarray, k: int) -> np.ndarray:
        return ids[top(self.score(query, ids), ids, k)]


class SparseRetriever:
    """BM25 over one index; a chunk's id is its row. Chunks without any term of the query are never returned."""

    def __init__(self, index: SparseIndex) -> None:
        self._index = index
        self._rows = np.arange(len(index), dtype=np.int64)

    def query(self, text: str) -> list[str]:
        """Its terms."""
        return terms(text)

    def search(self, queries: Sequence[list[str]], k: int) -> list[np.ndarray]:
        """See ``speculation.Retriever``; the queries of a batch are spread over the cores."""
        return list(threads().map(lambda query: self._search(query, k), queries))

    def score(self, query: list[str], ids: np.ndarray) -> np.ndarray:
        """See ``speculation.Retriever``."""
        scores = self._index.scores_of(query, ids).astype(np.float64)
        return np.where(scores > 0, scores, -np.inf)

    def likeness(self, query: list[str], other: list[str]) -> float:
        """See ``speculation.Retriever``: the share of their terms that both have."""
        return _common(query, other)

    def _search(self, query: list[str], k: int) -> np.ndarray:
        scores = self._index.scores(query)
        rows = select(_NONE, scores, _EVERY, 0.0, 1.0, 0.0, 0.0, k, 0.0)
        return rows[top(scores[rows].astype(np.float64), rows, k)]


class SnapshotRetriever:
    """A library's own search in one snapshot and scope: what changes in the library meanwhile changes nothing here."""

    def __init__(
        self,
        snapshot: Snapshot,
        scope: Scope,
        mode: Mode,
        encode: Encode,
        fit: Fit,
        weigh: Weigh,
        corpus: Scope | None = None,
    ) -> None:
        """corpus: of the one who asks; see ``Query``."""
        self.snapshot = snapshot
        self.tokens_cut = 0
        """most that a query was longer than the encoder, whose last tokens were then encoded alone"""
        self._scope = scope
        self._mode = mode
        self._encode = encode
        self._fit = fit
        self._weigh = weigh
        self._corpus = corpus

    def query(self, text: str) -> Query:
        """Terms and vector, as the mode needs them."""
        if self._mode == "sparse":
            return self.snapshot.query(text, None, self._mode, 1, corpus=self._corpus)
        newest, cut = self._fit(text)
        self.tokens_cut = max(self.tokens_cut, cut)
        vector, weight = self._encode([newest])[0], self._weigh(newest)
        return self.snapshot.query(text, vector, self._mode, 1, weight, self._corpus)

    def search(self, queries: Sequence[Query], k: int) -> list[np.ndarray]:
        """See ``speculation.Retriever``; one pass over the vectors for all queries."""
        found = search_together(self.snapshot, [(replace(query, k=k), self._scope) for query in queries])
        return [ids for ids, _ in found]

    def score(self, query: Query, ids: np.ndarray) -> np.ndarray:
        """See ``speculation.Retriever``."""
        return self.snapshot.score(query, ids)

    def likeness(self, query: Query, other: Query) -> float:
        """See ``speculation.Retriever``: the cosine, the share of common terms, or the mean of both."""
        common = _common(query.text_terms, other.text_terms)
        if query.vector is None or other.vector is None:
            return common
        cosine = float(query.vector @ other.vector)
        return cosine if self._mode == "dense" else (common + cosine) / 2


def _common(terms_: Sequence[str], others: Sequence[str]) -> float:
    both = set(terms_) | set(others)
    return len(set(terms_) & set(others)) / len(both) if both else 1.0

"""What a search sees: one generation, the documents of it that are gone, and those that came after it.

A snapshot never changes. A change of the store makes a new one that shares everything but the difference, so a
search in progress is never disturbed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from retrieval.analysis.terms import query_terms
from retrieval.embedding.encoding import AS_IT_IS, CosineWeight
from retrieval.index.dense import cosines
from retrieval.index.generation import Generation
from retrieval.index.hybrid import Blend, answers, blend, fuse, select, top
from retrieval.index.sparse import SparseSegment, SparseStatistics
from retrieval.types import DocumentKey, Mode

ROUNDING = 1e-5
"""more than what float32 loses when two scores are weighted and added"""
REMEMBERED_SCOPES = 256
SCAN_UP_TO = 4096
"""rows in scope up to which every one is scored rather than searched for"""


_NONE = np.empty(0, dtype=np.float32)


@dataclass(frozen=True)
class Segment:
    """One document's chunks that are in no generation yet.

    Attributes:
        ids: int64[m].
        vectors: float32[m, d].
    """

    key: DocumentKey
    ids: np.ndarray
    vectors: np.ndarray
    sparse: SparseSegment


@dataclass(frozen=True)
class Scope:
    """What a search may return. ``rows`` bool[n] of the generation (None: all), and segments."""

    rows: np.ndarray | None
    count: int
    segments: tuple[Segment, ...]


@dataclass(frozen=True)
class Query:
    """One question to a snapshot.

    Attributes:
        vector: float32[d]; None in sparse mode.
        weight: of its cosines in hybrid mode.
        corpus: by whose passages words are weighed, all of the one who asks; None: by everybody's.
    """

    text_terms: Sequence[str]
    vector: np.ndarray | None
    mode: Mode
    k: int
    weight: CosineWeight = AS_IT_IS
    corpus: Scope | None = None


DenseScores = Callable[[Generation, np.ndarray], np.ndarray]
"""(generation, float32[d]) → float32[n]: the cosine of every row, to ``DenseIndex.error``"""


@dataclass(frozen=True)
class Snapshot:
    """One state of the index; see above.

    Attributes:
        seq: the journal up to here is in this snapshot.
        alive: bool[documents of the generation].
    """

    seq: int
    generation: Generation | None
    alive: np.ndarray
    segments: tuple[Segment, ...]
    _scopes: dict[object, Scope] = field(default_factory=dict, compare=False)

    @classmethod
    def of(cls, generation: Generation | None, seq: int) -> Snapshot:
        return cls(seq, generation, np.ones(len(generation.documents) if generation else 0, dtype=bool), ())

    def query(
        self,
        text: str,
        vector: np.ndarray | None,
        mode: Mode,
        k: int,
        weight: CosineWeight = AS_IT_IS,
        corpus: Scope | None = None,
    ) -> Query:
        """In the languages of this snapshot; in sparse mode where the encoder could not read the text (zero vector)."""
        if vector is None or not vector.any():
            vector, mode = None, "sparse"
        terms = query_terms(text, self._languages) if mode != "dense" else []
        return Query(terms, vector, mode, k, weight, None if corpus is None or self._is_whole(corpus) else corpus)

    @cached_property
    def _languages(self) -> Counter[str]:
        """language → chunks"""
        parts = [segment.sparse.languages for segment in self.segments]
        if self.generation is not None:
            parts.append(self.generation.sparse.languages)
        return sum(map(Counter, parts), Counter())

    def _is_whole(self, corpus: Scope) -> bool:
        """Whether everything that is there is in it."""
        return corpus.count + len(corpus.segments) == self._live_rows + len(self.segments)

    @cached_property
    def _live_rows(self) -> int:
        return 0 if self.generation is None else int(np.count_nonzero(self.alive[self.generation.document_of_row]))

    def _statistics(self, query: Query) -> SparseStatistics:
        index = self.generation.sparse if self.generation else None
        corpus = query.corpus
        if corpus is None:
            return SparseStatistics(query.text_terms, index, [segment.sparse for segment in self.segments])
        return SparseStatistics(query.text_terms, index, [segment.sparse for segment in corpus.segments], corpus.rows)

    @property
    def pending(self) -> int:
        return sum(len(segment.ids) for segment in self.segments)

    @property
    def tombstones(self) -> int:
        if self.generation is None:
            return 0
        return int(np.count_nonzero(~self.alive[self.generation.document_of_row]))

    def after(self, seq: int, gone: set[str], added: Sequence[Segment]) -> Snapshot:
        """The snapshot once the documents ``gone`` are removed and then the segments ``added``."""
        alive = self.alive.copy()
        if self.generation is not None:
            for document in gone:
                index = self.generation.index_of_document.get(document)
                if index is not None:
                    alive[index] = False
        kept = tuple(segment for segment in self.segments if segment.key[0] not in gone)
        return replace(self, seq=seq, alive=alive, segments=kept + tuple(added), _scopes={})

    def live_ids(self) -> np.ndarray:
        """int64, rising: every chunk that a search can find."""
        parts = [segment.ids for segment in self.segments]
        if self.generation is not None:
            parts.append(self.generation.ids[self.alive[self.generation.document_of_row]])
        return np.sort(np.concatenate(parts)) if parts else np.empty(0, dtype=np.int64)

    def scope(self, name: object, documents: Callable[[], set[str]]) -> Scope:
        """The scope of the given documents, remembered under ``name`` as long as the snapshot lasts."""
        scope = self._scopes.get(name)
        if scope is None:
            scope = self._make_scope(documents())
            if len(self._scopes) >= REMEMBERED_SCOPES:
                self._scopes.clear()
            self._scopes[name] = scope
        return scope

    def _make_scope(self, documents: set[str]) -> Scope:
        segments = tuple(segment for segment in self.segments if segment.key[0] in documents)
        if self.generation is None:
            return Scope(None, 0, segments)
        allowed = self.alive & np.fromiter(
            (key[0] in documents for key in self.generation.documents), dtype=bool, count=len(self.alive)
        )
        if allowed.all():
            return Scope(None, len(self.generation.ids), segments)
        rows = allowed[self.generation.document_of_row]
        return Scope(rows, int(np.count_nonzero(rows)), segments)

    def scans(self, query: Query, scope: Scope) -> bool:
        """Whether ``search`` asks for the cosine of every row of the generation."""
        return query.vector is not None and self._is_large(query, scope) and self._is_exact

    @property
    def _is_exact(self) -> bool:
        return self.generation is not None and self.generation.dense.exact

    @staticmethod
    def _is_large(query: Query, scope: Scope) -> bool:
        return scope.count > max(SCAN_UP_TO, query.k)

    def search(self, query: Query, scope: Scope, dense_scores: DenseScores) -> tuple[np.ndarray, np.ndarray]:
        """(int64[≤k] chunk ids, float64[≤k] scores) by (−score, id)."""
        statistics = self._statistics(query)
        by = blend(query.mode, statistics.ceiling, query.weight)
        ids, scores = self._search_generation(query, scope, by, statistics, dense_scores)
        found_ids, found_scores = [ids], [scores]
        for segment in scope.segments:
            cosine = _cosines(segment.vectors, query.vector)
            bm25 = segment.sparse.scores(query.text_terms, statistics.idf, statistics.average_length)
            found_ids.append(segment.ids)
            found_scores.append(fuse(by, cosine, bm25))
        ids, scores = np.concatenate(found_ids), np.concatenate(found_scores)
        found = answers(by, scores)
        ids, scores = ids[found], scores[found]
        best = top(scores, ids, query.k)
        return ids[best], scores[best]

    def score(self, query: Query, ids: np.ndarray) -> np.ndarray:
        """float64[n]: the scores by which ``search`` ranks the chunks ``ids``, found by some search of this snapshot.

        −inf for one that is no answer.
        """
        statistics = self._statistics(query)
        by = blend(query.mode, statistics.ceiling, query.weight)
        scores = np.full(len(ids), -np.inf)
        if self.generation is not None:
            rows, places = _places(self.generation.ids, ids)
            cosine = _cosines_of_rows(self.generation, rows, query.vector)
            bm25 = cosine
            if query.mode != "dense":
                bm25 = self.generation.sparse.scores_of(query.text_terms, rows, statistics)
            scores[places] = fuse(by, cosine, bm25)
        for segment in self.segments:
            rows, places = _places(segment.ids, ids)
            if len(rows):
                bm25 = segment.sparse.scores(query.text_terms, statistics.idf, statistics.average_length)[rows]
                cosine = _cosines(segment.vectors[rows], query.vector)
                scores[places] = fuse(by, cosine, bm25)
        return np.where(answers(by, scores), scores, -np.inf)

    def _search_generation(
        self, query: Query, scope: Scope, by: Blend, statistics: SparseStatistics, dense_scores: DenseScores
    ) -> tuple[np.ndarray, np.ndarray]:
        generation = self.generation
        if generation is None or scope.count == 0:
            return np.empty(0, dtype=np.int64), np.empty(0)
        bm25 = generation.sparse.scores(query.text_terms, statistics) if query.mode != "dense" else _NONE

        def score(rows: np.ndarray) -> np.ndarray:
            cosine = _cosines_of_rows(generation, rows, query.vector)
            return fuse(by, cosine, bm25[rows] if len(bm25) else cosine)

        if not self._is_large(query, scope):
            rows = np.flatnonzero(scope.rows) if scope.rows is not None else np.arange(len(generation.ids))
            return generation.ids[rows], score(rows)
        rows = self._candidates(query, scope, bm25, by, dense_scores)
        return generation.ids[rows], score(rows)

    def _candidates(
        self, query: Query, scope: Scope, bm25: np.ndarray, by: Blend, dense_scores: DenseScores
    ) -> np.ndarray:
        """Rows that contain the k best of the scope; where the dense index is approximate, those it knows of."""
        assert self.generation is not None
        if query.vector is None:
            return select(_NONE, bm25, _allowed(scope), *by, 0.0, query.k, 0.0)
        if not self._is_exact:
            return self._approximate(query, scope, bm25)
        cosine = dense_scores(self.generation, query.vector)
        # the k-th best may be scored too high, and one better than it too low
        margin = 2 * by.cosine * self.generation.dense.error + ROUNDING
        return select(cosine, bm25, _allowed(scope), *by, -np.inf, query.k, margin)

    def _approximate(self, query: Query, scope: Scope, bm25: np.ndarray) -> np.ndarray:
        """The best by each of the two scores, several times more than are wanted."""
        generation = self.generation
        assert generation is not None
        assert query.vector is not None
        depth = min(max(64, 4 * query.k), scope.count)
        within = generation.ids[scope.rows] if scope.rows is not None else None
        ids = generation.dense.search(query.vector[None], depth, within)[0]
        rows = np.searchsorted(generation.ids, ids[ids >= 0])
        if query.mode == "hybrid":
            rows = np.union1d(rows, select(_NONE, bm25, _allowed(scope), 0.0, 1.0, 0.0, 0.0, depth, 0.0))
        return rows


def _places(known: np.ndarray, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(rows in ``known``, which rises, of those ``ids`` that are in it; their places in ``ids``), int64."""
    rows = np.searchsorted(known, ids)
    found = rows < len(known)
    found[found] = known[rows[found]] == ids[found]
    return rows[found], np.flatnonzero(found)


def _allowed(scope: Scope) -> np.ndarray:
    return np.empty(0, dtype=bool) if scope.rows is None else scope.rows


def _cosines_of_rows(generation: Generation, rows: np.ndarray, query: np.ndarray | None) -> np.ndarray:
    if query is None:
        return np.zeros(len(rows), dtype=np.float32)
    return _cosines(generation.dense.vectors(rows, generation.ids[rows]), query)


def _cosines(vectors: np.ndarray, query: np.ndarray | None) -> np.ndarray:
    return np.zeros(len(vectors), dtype=np.float32) if query is None else cosines(vectors, query)

"""Searches that run at the same time, run as one.

All concurrent queries are embedded in one pass, compared with the index in one product of matrices, and their hits
are read with one statement an owner. On two cores this is what makes ten clients wait for two batches rather than
for ten searches that take Python's lock from one another.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from retrieval.common.threads import threads
from retrieval.embedding.encoding import AS_IT_IS, Embedder, cosine_weight
from retrieval.errors import RetrievalError
from retrieval.index.index import Index
from retrieval.index.snapshot import Query, Scope, Snapshot
from retrieval.store import documents as store
from retrieval.store.database import Database
from retrieval.types import Hit, Mode, SearchResult

Found = tuple[np.ndarray, np.ndarray]
"""(int64 chunk ids, float64 scores)"""


@dataclass(frozen=True)
class SearchRequest:
    """One search; see ``Library.search``."""

    query: str
    k: int
    mode: Mode
    owner: str
    collection: str | None
    documents: tuple[str, ...] | None


class Searcher:
    """Runs batches of searches over one library."""

    def __init__(self, database: Database, embedder: Embedder, index: Callable[[], Index]) -> None:
        self._database = database
        self._embedder = embedder
        self._index = index

    def __call__(self, requests: Sequence[SearchRequest]) -> list[SearchResult | Exception]:
        """A result each, in order, or why there is none. Error: EmbedderMismatch."""
        index = self._index()
        vectors = self._vectors(requests)
        results: dict[int, SearchResult | Exception] = {}
        open_ = list(range(len(requests)))
        while open_:
            snapshot = index.refresh()
            asked: dict[int, tuple[Query, Scope]] = {}
            for at in open_:
                request = requests[at]
                try:
                    scope, corpus = self.scope(snapshot, request), self.corpus(snapshot, request.owner)
                except RetrievalError as error:
                    results[at] = error
                else:
                    weighed = request.mode == "hybrid"
                    weight = cosine_weight(self._embedder, request.query) if weighed else AS_IT_IS
                    query = snapshot.query(request.query, vectors.get(at), request.mode, request.k, weight, corpus)
                    asked[at] = query, scope
            found = search_together(snapshot, list(asked.values()))
            hits = self._hits([requests[at].owner for at in asked], found)
            # what was deleted or replaced since the snapshot is missing among the hits: look again
            short = [at for at, (ids, _), got in zip(asked, found, hits, strict=True) if len(got) < len(ids)]
            open_ = short if short and index.refresh() is not snapshot else []
            number = snapshot.generation.number if snapshot.generation else 0
            results |= {
                at: SearchResult(got, number, _note(requests[at].mode, asked[at][0].mode))
                for at, got in zip(asked, hits, strict=True)
            }
        return [results[at] for at in range(len(requests))]

    def _vectors(self, requests: Sequence[SearchRequest]) -> dict[int, np.ndarray]:
        """By place, of those that need one."""
        dense = [at for at, request in enumerate(requests) if request.mode != "sparse"]
        texts = [requests[at].query for at in dense]
        return dict(zip(dense, self._embedder.encode_queries(texts), strict=True)) if texts else {}

    def scope(self, snapshot: Snapshot, request: SearchRequest) -> Scope:
        """What the search may return. Error: NotFound (collection or document)."""

        def ids() -> set[str]:
            with self._database.read() as connection:
                return store.ids_in_scope(connection, request.owner, request.collection, request.documents)

        return snapshot.scope((request.owner, request.collection, request.documents), ids)

    def corpus(self, snapshot: Snapshot, owner: str) -> Scope:
        """All that an owner has."""
        return self.scope(snapshot, SearchRequest("", 1, "sparse", owner, None, None))

    def _hits(self, owners: Sequence[str], found: Sequence[Found]) -> list[list[Hit]]:
        scores = [dict(zip(ids.tolist(), values.tolist(), strict=True)) for ids, values in found]
        wanted: dict[str, set[int]] = {}
        for owner, ids in zip(owners, scores, strict=True):
            wanted.setdefault(owner, set()).update(ids)
        with self._database.read() as connection:
            live = {owner: store.read_hits(connection, owner, ids) for owner, ids in wanted.items()}
        return [
            [live[owner][chunk].scored(score) for chunk, score in ids.items() if chunk in live[owner]]
            for owner, ids in zip(owners, scores, strict=True)
        ]


def _note(asked: Mode, answered: Mode) -> str:
    if asked == answered:
        return ""
    return "the embedding model knows none of these words; only the words themselves were searched for"


def search_together(snapshot: Snapshot, asked: Sequence[tuple[Query, Scope]]) -> list[Found]:
    """Each query in its scope, with one pass over the dense index for all that need one; the rest on all cores."""
    scanning = [at for at, (query, scope) in enumerate(asked) if snapshot.scans(query, scope)]
    scanned: dict[int, np.ndarray] = {}
    if scanning and snapshot.generation is not None:
        vectors = np.stack([asked[at][0].vector for at in scanning])  # type: ignore[misc]
        scanned = dict(zip(scanning, snapshot.generation.dense.scores(vectors), strict=True))

    def search(at: int) -> Found:
        query, scope = asked[at]
        return snapshot.search(query, scope, lambda _generation, _vector: scanned[at])

    return list(threads().map(search, range(len(asked))))

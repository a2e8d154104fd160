"""Nearest entries of a datastore by squared Euclidean distance: over all of them, or over some inverted lists.

A query finds the same entries, at the same distances to the last bit, alone and in a batch. Products of matrices
round by their shape, so they only choose candidates, with more room than their rounding needs; the distances of the
candidates are then computed by one loop, and equal distances are ordered by entry.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from retrieval.common.threads import threads
from retrieval.errors import InvalidRequest
from retrieval.knn.kernels import squared_distances, squared_distances_of_halves
from retrieval.knn.scan import Addends, Scan, multiplies_bfloat16
from retrieval.knn.storage import unpacked
from retrieval.knn.store import Datastore

MAX_K = 4096
_BATCH = 32
_SCAN_ROWS = 1 << 16
_RUN_ROWS = 1 << 14


Found = tuple[np.ndarray, np.ndarray]
"""(int64[≤k] entries, float32[≤k] squared distances), nearest first"""


@dataclass(frozen=True)
class Neighbours:
    """What was found for b queries, nearest first, equal distances by entry.

    Attributes:
        entries: int64[b, k], −1 where there are fewer.
        distances: float32[b, k], squared; infinite where there are fewer.
    """

    entries: np.ndarray
    distances: np.ndarray


class Search(ABC):
    """Finds the k nearest entries. One search at a time: each takes all cores."""

    def __init__(self, store: Datastore) -> None:
        self.store = store
        self._key_type = store.identity.key_type
        self._halves = self._key_type == "bfloat16" and multiplies_bfloat16()
        self._norms = store.norms
        self._addends: Addends | None = None
        self._turn = threading.Lock()

    def __call__(self, queries: np.ndarray, k: int) -> Neighbours:
        """queries float32[b, d]. Error: InvalidRequest for k outside 1 … MAX_K."""
        check_k(k)
        with self._turn:
            return joined([self._search(part, k) for part in _batches(queries)], k)

    def _begin(self, queries: np.ndarray, k: int) -> tuple[Scan, Addends]:
        """A pass, and the addends of the keys in the order of the pass."""
        square = float(np.einsum("bd,bd->b", queries, queries).mean())
        if self._addends is None or not self._addends.suit(square):
            self._addends = Addends.of(self._norms, self._halves, square)
        return Scan(self.store, self._addends, queries, k, self._halves), self._addends

    def _nearest(self, scan: Scan, keys: np.ndarray, queries: np.ndarray) -> Iterator[Found]:
        """For each query the rows of ``keys`` that hold the nearest, in any order, and their distances."""

        def nearest(number: int) -> Found:
            return scan.nearest(number, lambda rows: distances_to(keys, rows, self._key_type, queries[number]))

        return threads().map(nearest, range(len(queries)))

    @abstractmethod
    def _search(self, queries: np.ndarray, k: int) -> list[Found]:
        """For a batch of at most _BATCH queries."""


class ExactSearch(Search):
    """Looks at every entry, reading the keys once for a batch."""

    def _search(self, queries: np.ndarray, k: int) -> list[Found]:
        store = self.store
        scan, addends = self._begin(queries, k)
        for start in range(0, len(store), _SCAN_ROWS):
            rows = slice(start, start + _SCAN_ROWS)
            scan.look_at(store.keys[rows], addends[rows], start)

        return [best(rows, distances, k) for rows, distances in self._nearest(scan, store.keys, queries)]


class ListSearch(Search):
    """Looks at the entries of the ``probes`` lists whose centroids are nearest; a batch reads each list once.

    Entries keep their key a second time beside the others of their list.
    """

    def __init__(self, store: Datastore, probes: int) -> None:
        if not store.lists:
            raise InvalidRequest("this datastore has no lists for approximate search; build it with lists")
        if probes < 1:
            raise InvalidRequest(f"at least 1 list must be looked at, not {probes}")
        super().__init__(store)
        self.probes = min(probes, store.lists)
        entries, dim = len(store), store.identity.dim
        self._centroids = store.array("list_centroids.bin", "float32", (store.lists, dim))
        self._offsets = store.array("list_offsets.bin", "int64", (store.lists + 1,))
        self._entries = store.array("list_entries.bin", "int32", (entries,))
        self._keys = store.array("list_keys.bin", store.identity.storage, (entries, dim))
        self._norms = store.norms[self._entries]

    def _search(self, queries: np.ndarray, k: int) -> list[Found]:
        asked = np.stack([self._nearest_lists(query) for query in queries])
        scan, addends = self._begin(queries, k)
        for first, last in _runs(np.any(asked, axis=0), self._offsets):
            start, end = self._offsets[first], self._offsets[last]
            scan.look_at(
                self._keys[start:end],
                addends[start:end],
                int(start),
                self._offsets[first : last + 1] - start,
                asked[:, first:last],
            )
        return [
            best(self._entries[rows].astype(np.int64), distances, k)
            for rows, distances in self._nearest(scan, self._keys, queries)
        ]

    def _nearest_lists(self, query: np.ndarray) -> np.ndarray:
        """bool[lists]: the probed ones."""
        distances = squared_distances(self._centroids, query)
        asked = np.zeros(len(distances), dtype=bool)
        asked[np.lexsort((np.arange(len(distances)), distances))[: self.probes]] = True
        return asked


def check_k(k: int) -> None:
    """Error: InvalidRequest."""
    if not 1 <= k <= MAX_K:
        raise InvalidRequest(f"k, the neighbours of a token, must be from 1 to {MAX_K}, not {k}")


def best(entries: np.ndarray, distances: np.ndarray, k: int) -> Found:
    """The k nearest of int64[m] candidates, by (distance, entry)."""
    if len(distances) > 4 * k:
        near = distances <= np.partition(distances, k - 1)[k - 1]
        entries, distances = entries[near], distances[near]
    order = np.lexsort((entries, distances))[:k]
    return entries[order], distances[order]


def joined(parts: Sequence[Sequence[Found]], k: int) -> Neighbours:
    """The results of the queries of all parts as one, filled up to k."""
    found = [one for part in parts for one in part]
    entries = np.full((len(found), k), -1, dtype=np.int64)
    distances = np.full((len(found), k), np.inf, dtype=np.float32)
    for row, (nearest, apart) in enumerate(found):
        entries[row, : len(nearest)] = nearest
        distances[row, : len(nearest)] = apart
    return Neighbours(entries, distances)


def distances_to(keys: np.ndarray, rows: np.ndarray, key_type: str, query: np.ndarray) -> np.ndarray:
    """float32[m] squared distances of int64[m] rows of keys as they are kept."""
    if key_type == "bfloat16":
        return squared_distances_of_halves(keys, rows, query)
    return squared_distances(unpacked(keys[rows], key_type), query)


def _batches(queries: np.ndarray) -> Iterator[np.ndarray]:
    """Parts of float32[b, d] that are searched for together."""
    wanted = np.ascontiguousarray(queries, dtype=np.float32)
    for start in range(0, len(wanted), _BATCH):
        yield wanted[start : start + _BATCH]


def _runs(wanted: np.ndarray, offsets: np.ndarray) -> Iterator[tuple[int, int]]:
    """[first, last) of neighbouring wanted lists, of about ``_RUN_ROWS`` rows at most."""
    first = -1
    for one in range(len(wanted) + 1):
        ends = one == len(wanted) or not wanted[one]
        if first >= 0 and (ends or offsets[one] - offsets[first] > _RUN_ROWS):
            yield first, one
            first = -1
        if not ends and first < 0:
            first = one

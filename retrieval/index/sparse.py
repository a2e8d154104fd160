"""BM25 by bm25s: scores of every posting are computed once, when the index is built, and memory-mapped afterwards.

What a term is says ``retrieval.analysis``.

The default variant is Lucene's, whose idf is never negative. ``atire`` with ``robertson`` idf is rank-bm25's
``BM25Okapi`` with epsilon 0, to which the tests hold this file. Chunks newer than the index are scored by the same
formula with the statistics of both (``SparseSegment``).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import bm25s
import numpy as np
from numba import njit

from retrieval.analysis.terms import language_of

# Those of Anserini and BEIR: chunks are of like length, and say a thing once.
K1 = 0.9
B = 0.4
METHOD = "lucene"

_FILES = {
    "data_name": "sparse.data.npy",
    "indices_name": "sparse.indices.npy",
    "indptr_name": "sparse.indptr.npy",
    "vocab_name": "sparse.vocabulary.json",
    "params_name": "sparse.parameters.json",
}
_LENGTHS = "sparse.lengths.npy"
_LANGUAGES = "sparse.languages.json"


class SparseIndex:
    """BM25 over n chunks, by row. Immutable and thread-safe once built."""

    def __init__(self, model: bm25s.BM25, lengths: np.ndarray, languages: Mapping[str, int]) -> None:
        self._model = model
        self.lengths = lengths
        """int32[n] terms of each chunk"""
        self.languages = languages
        """language → chunks in it"""
        self.total_length = int(lengths.sum())

    @classmethod
    def build(
        cls,
        corpus: Sequence[Sequence[str]],
        languages: Sequence[str] = (),
        method: str = METHOD,
        idf_method: str | None = None,
    ) -> SparseIndex:
        """corpus: the terms of each chunk, in row order; languages: of each."""
        model = bm25s.BM25(k1=K1, b=B, method=method, idf_method=idf_method)
        vocabulary: dict[str, int] = {}
        ids = [[vocabulary.setdefault(term, len(vocabulary)) for term in document] for document in corpus]
        if vocabulary:
            model.index((ids, vocabulary), show_progress=False)
        else:  # bm25s takes no corpus without a word
            model.scores, model.vocab_dict, model.nonoccurrence_array = _no_postings(len(ids)), {}, None
        lengths = np.fromiter((len(document) for document in ids), dtype=np.int32, count=len(ids))
        return cls(model, lengths, Counter(languages))

    def __len__(self) -> int:
        return len(self.lengths)

    def document_frequency(self, term: str, among: np.ndarray | None = None) -> int:
        """Chunks that hold the term, of those of bool[n] ``among``."""
        row = self._model.vocab_dict.get(term)
        if row is None:
            return 0
        indptr = self._model.scores["indptr"]
        if row + 1 >= len(indptr):
            return 0
        if among is None:
            return int(indptr[row + 1] - indptr[row])
        return int(np.count_nonzero(among[self._model.scores["indices"][indptr[row] : indptr[row + 1]]]))

    def scores(self, query: Sequence[str], of: SparseStatistics | None = None) -> np.ndarray:
        """float32[n]: BM25 of every chunk; a term asked twice counts twice.

        of: whose corpus it is; where that is not all of it, other people's chunks score 0.
        """
        ids, postings = self._asked(query)
        if not len(ids):
            return np.zeros(len(self), dtype=np.float32)
        if of is None or of.among is None:
            return _sum_postings(*postings, ids, len(self))
        return _sum_anew(*postings, ids, *self._weighed(query, of), of.among)

    def scores_of(self, query: Sequence[str], rows: np.ndarray, of: SparseStatistics | None = None) -> np.ndarray:
        """float32[len(rows)]: what ``scores`` has in these rows (int64), from their own postings, to the last bit."""
        ids, postings = self._asked(query)
        if not len(ids) or not len(rows):
            return np.zeros(len(rows), dtype=np.float32)
        if of is None or of.among is None:
            return _pick_postings(*postings, ids, rows)
        return _pick_anew(*postings, ids, *self._weighed(query, of), rows)

    def _asked(self, query: Sequence[str]) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """int64 ids of the terms that any chunk holds, and the postings: scores, rows, where each term begins."""
        ids = self._model.get_tokens_ids([term for term in query if self.document_frequency(term)])
        scores = self._model.scores
        return np.array(ids, dtype=np.int64), (scores["data"], scores["indices"], scores["indptr"])

    def _weighed(
        self, query: Sequence[str], of: SparseStatistics
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """What the scores of each term were made with, and what they are to be made with: idf [terms], norms [n]."""
        held = [(term, found) for term in query if (found := self.document_frequency(term))]
        then = np.array([_idf(len(self), found) for _, found in held])
        now = np.array([of.idf[term] for term, _ in held])
        average = self.total_length / len(self)
        return then, now, _norms(self.lengths, average), _norms(self.lengths, of.average_length)

    def save(self, folder: Path) -> list[Path]:
        """Write it as bm25s does; returns the files."""
        self._model.save(folder, show_progress=False, **_FILES)
        np.save(folder / _LENGTHS, self.lengths)
        (folder / _LANGUAGES).write_text(json.dumps(self.languages), encoding="utf-8")
        return [folder / name for name in (*_FILES.values(), _LENGTHS, _LANGUAGES)]

    @classmethod
    def load(cls, folder: Path) -> SparseIndex:
        """Memory-mapped from the files that ``save`` wrote."""
        model = bm25s.BM25.load(folder, mmap=True, **_FILES)
        model.scores |= {name: np.asarray(model.scores[name]) for name in ("data", "indices", "indptr")}
        languages = json.loads((folder / _LANGUAGES).read_text(encoding="utf-8"))
        return cls(model, np.load(folder / _LENGTHS), languages)


def _no_postings(documents: int) -> dict[str, Any]:
    """What ``bm25s`` keeps of an index, for documents without a word."""
    return {
        "data": np.empty(0, np.float32),
        "indices": np.empty(0, np.int32),
        "indptr": np.zeros(1, np.int64),
        "num_docs": documents,
    }


class SparseSegment:
    """Postings of a few chunks that no index holds yet."""

    def __init__(self, corpus: Sequence[Sequence[str]], languages: Sequence[str] = ()) -> None:
        self.languages: Mapping[str, int] = Counter(languages)
        self.lengths = np.array([len(document) for document in corpus], dtype=np.int32)
        postings: dict[str, tuple[list[int], list[int]]] = {}
        for row, document in enumerate(corpus):
            for term, count in Counter(document).items():
                rows, counts = postings.setdefault(term, ([], []))
                rows.append(row)
                counts.append(count)
        self._postings = {term: (np.array(rows), np.array(counts)) for term, (rows, counts) in postings.items()}

    def document_frequency(self, term: str) -> int:
        return len(self._postings[term][0]) if term in self._postings else 0

    def scores(self, query: Sequence[str], idf: dict[str, float], average_length: float) -> np.ndarray:
        """float32[n] by Lucene's formula, with statistics that the caller gives."""
        scores = np.zeros(len(self.lengths), dtype=np.float32)
        norm = _norms(self.lengths, average_length)
        for term in query:
            if term in self._postings:
                rows, counts = self._postings[term]
                scores[rows] += (idf[term] * counts / (counts + norm[rows])).astype(np.float32)
        return scores


class SparseStatistics:
    """Corpus statistics for one query over an index and the segments behind it.

    Args:
        among: bool[n], the chunks of the index that are the corpus of the one who asks; None: all. How many of other
            people's chunks hold a term, and how long they are, is then in none of his scores.
    """

    def __init__(
        self,
        query: Sequence[str],
        index: SparseIndex | None,
        segments: Sequence[SparseSegment],
        among: np.ndarray | None = None,
    ) -> None:
        self.among = among
        lengths = [part.lengths for part in segments]
        if index is not None:
            lengths.append(index.lengths if among is None else index.lengths[among])
        count, total = sum(map(len, lengths)), sum(int(some.sum()) for some in lengths)
        self.average_length = max(total / count, 1.0) if count else 1.0
        self.idf: dict[str, float] = {}
        for term in set(query):
            frequency = sum(part.document_frequency(term) for part in segments)
            if index is not None:
                frequency += index.document_frequency(term, among)
            self.idf[term] = _idf(count, frequency)
        by_language: Counter[str] = Counter()
        for term in query:
            by_language[language_of(term)] += self.idf[term]  # type: ignore[assignment]
        self.ceiling = float(max(by_language.values(), default=0.0))
        """no chunk can score more than this on the query, as it is of one language: the fixed scale of hybrid search"""


def _idf(count: int, frequency: int) -> float:
    """Lucene's; 0 of a term that no chunk holds."""
    return float(np.log1p((count - frequency + 0.5) / (frequency + 0.5))) if frequency else 0.0


def _norms(lengths: np.ndarray, average: float) -> np.ndarray:
    """float64[n]: what BM25 adds to the count of a term in chunks of these lengths."""
    return K1 * (1 - B + B * lengths / average)


@njit(nogil=True, cache=True)
def _sum_postings(
    data: np.ndarray, indices: np.ndarray, indptr: np.ndarray, terms: np.ndarray, rows: int
) -> np.ndarray:  # pragma: no cover - compiled
    """bm25s' own sum, in its order, without Python's lock."""
    scores = np.zeros(rows, np.float32)
    for term in terms:
        for position in range(indptr[term], indptr[term + 1]):
            scores[indices[position]] += data[position]
    return scores


@njit(nogil=True, cache=True)
def _sum_anew(
    data: np.ndarray,
    indices: np.ndarray,
    indptr: np.ndarray,
    terms: np.ndarray,
    then: np.ndarray,
    now: np.ndarray,
    norms_then: np.ndarray,
    norms: np.ndarray,
    among: np.ndarray,
) -> np.ndarray:  # pragma: no cover - compiled
    """The same with other statistics, of some rows."""
    scores = np.zeros(len(among), np.float32)
    for number in range(len(terms)):
        term = terms[number]
        for position in range(indptr[term], indptr[term + 1]):
            row = indices[position]
            if among[row]:
                scores[row] += _anew(data[position] / then[number], norms_then[row], now[number], norms[row])
    return scores


@njit(nogil=True, cache=True)
def _anew(share: float, norm_then: float, idf: float, norm: float) -> float:  # pragma: no cover - compiled
    """A term's score. Counts are whole numbers: nothing is left of the statistics of then, not even rounding."""
    count = np.rint(share * norm_then / (1 - share))
    return idf * count / (count + norm)


@njit(nogil=True, cache=True)
def _pick_postings(
    data: np.ndarray, indices: np.ndarray, indptr: np.ndarray, terms: np.ndarray, rows: np.ndarray
) -> np.ndarray:  # pragma: no cover - compiled
    """The sums of ``_sum_postings`` for some rows, in the same order; the postings of a term rise by row."""
    scores = np.zeros(len(rows), np.float32)
    for term in terms:
        for number in range(len(rows)):
            at = _place(indices, indptr[term], indptr[term + 1], rows[number])
            if at >= 0:
                scores[number] += data[at]
    return scores


@njit(nogil=True, cache=True)
def _pick_anew(
    data: np.ndarray,
    indices: np.ndarray,
    indptr: np.ndarray,
    terms: np.ndarray,
    then: np.ndarray,
    now: np.ndarray,
    norms_then: np.ndarray,
    norms: np.ndarray,
    rows: np.ndarray,
) -> np.ndarray:  # pragma: no cover - compiled
    """The sums of ``_sum_anew`` for some of its rows."""
    scores = np.zeros(len(rows), np.float32)
    for number in range(len(terms)):
        term = terms[number]
        for place in range(len(rows)):
            row = rows[place]
            at = _place(indices, indptr[term], indptr[term + 1], row)
            if at >= 0:
                scores[place] += _anew(data[at] / then[number], norms_then[row], now[number], norms[row])
    return scores


@njit(nogil=True, cache=True)
def _place(indices: np.ndarray, first: int, end: int, row: int) -> int:  # pragma: no cover - compiled
    """Where a row stands among the postings of a term; -1 for nowhere."""
    low, high = first, end
    while low < high:
        middle = (low + high) // 2
        if indices[middle] < row:
            low = middle + 1
        else:
            high = middle
    return low if low < end and indices[low] == row else -1

"""Dense and sparse scores as one, on a fixed scale.

hybrid = w·c·(cos − u) + (1 − w)·BM25 / ceiling. The ceiling (the sum of the query terms' idf) depends on the query and
the corpus alone, and c and u on the query and the encoder: the less of a query an encoder reads, the less its cosines
count (``embedding.encoding``). So the score of a chunk does not depend on which other chunks were found, a ranking over
a subset is the subset of the ranking, and one pass over all scores finds the exact top k. Reciprocal rank fusion has
none of these, and finds less where one of the two retrievers is bad. Ties are broken by chunk id.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

from retrieval.common.heap import replace_worst
from retrieval.embedding.encoding import CosineWeight
from retrieval.types import Mode

DENSE_WEIGHT = 0.5


class Blend(NamedTuple):
    """score = ``cosine`` · (cos − ``unrelated``) + ``bm25`` · BM25; a chunk without a vector is unrelated."""

    cosine: float
    bm25: float
    unrelated: float = 0.0


def blend(mode: Mode, ceiling: float, weight: CosineWeight) -> Blend:
    """Of a mode: the cosine, BM25 itself, or both."""
    if mode == "dense":
        return Blend(1.0, 0.0)
    if mode == "sparse":
        return Blend(0.0, 1.0)
    bm25 = (1 - DENSE_WEIGHT) / ceiling if ceiling > 0 else 0.0
    return Blend(DENSE_WEIGHT * weight.factor, bm25, weight.unrelated)


def fuse(by: Blend, cosine: np.ndarray, bm25: np.ndarray) -> np.ndarray:
    """float64[n]; what has no weight is not looked at."""
    scores = np.zeros(len(cosine))
    if by.cosine:
        related = np.where(cosine == 0, 0.0, cosine.astype(np.float64) - by.unrelated)
        scores += by.cosine * related
    if by.bm25:
        scores += by.bm25 * bm25.astype(np.float64)
    return scores


def answers(by: Blend, scores: np.ndarray) -> np.ndarray:
    """bool[n]: not those without any of the terms, by BM25 alone; nor those without a vector, by the cosine alone."""
    if not by.cosine:
        return scores > 0
    return np.ones(len(scores), dtype=bool) if by.bm25 else scores != 0


def top(scores: np.ndarray, ids: np.ndarray, k: int) -> np.ndarray:
    """Positions of the k best by (−score, id)."""
    if len(scores) > 4 * k:
        # keep everything that ties with the k-th, so that the ids decide and not the partition
        threshold = np.partition(scores, len(scores) - k)[len(scores) - k]
        kept = np.flatnonzero(scores >= threshold)
    else:
        kept = np.arange(len(scores))
    return kept[np.lexsort((ids[kept], -scores[kept]))][:k]


@njit(nogil=True, cache=True)
def select(
    cosine: np.ndarray,
    bm25: np.ndarray,
    allowed: np.ndarray,
    cosine_weight: float,
    bm25_weight: float,
    unrelated: float,
    floor: float,
    k: int,
    margin: float,
) -> np.ndarray:  # pragma: no cover - compiled
    """int64: every answer whose fused score is above ``floor`` and within ``margin`` of the k-th best, or better.

    cosine, bm25: float32[n]; either may be empty where its weight is 0. allowed: bool[n], or empty for all rows.
    """
    n = max(len(cosine), len(bm25))
    fused = np.empty(n, np.float32)
    heap = np.full(k, -np.inf, np.float32)  # the k best so far, the worst of them on top
    for row in range(n):
        score = np.float32(0)
        if cosine_weight != 0 and cosine[row] != 0:
            score += np.float32(cosine_weight) * (cosine[row] - np.float32(unrelated))
        if bm25_weight != 0:
            score += np.float32(bm25_weight) * bm25[row]
        unread = bm25_weight == 0 and cosine[row] == 0
        if (len(allowed) and not allowed[row]) or score <= floor or unread:
            score = np.float32(-np.inf)
        fused[row] = score
        if score > heap[0]:
            replace_worst(heap, score)
    threshold = heap[0] - np.float32(margin)
    rows = np.empty(n, np.int64)
    count = 0
    for row in range(n):
        if fused[row] >= threshold and fused[row] > -np.inf:
            rows[count] = row
            count += 1
    return rows[:count].copy()

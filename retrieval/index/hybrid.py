"""Dense and sparse scores as one, on a fixed scale.

hybrid = w·cos + (1 − w)·BM25 / ceiling, where the ceiling (the sum of the query terms' idf) depends on the query and
the corpus alone. So the score of a chunk does not depend on which other chunks were found, a ranking over a subset is
the subset of the ranking, and one pass over all scores finds the exact top k. Reciprocal rank fusion has none of these.
Ties are broken by chunk id.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from retrieval.common.heap import replace_worst
from retrieval.types import Mode

DENSE_WEIGHT = 0.5


def fuse(mode: Mode, cosine: np.ndarray, bm25: np.ndarray, ceiling: float) -> np.ndarray:
    """float64[n] scores of the mode: the cosine, BM25 itself, or both fused."""
    if mode == "dense":
        return cosine.astype(np.float64)
    if mode == "sparse":
        return bm25.astype(np.float64)
    scaled = bm25.astype(np.float64) / ceiling if ceiling > 0 else np.zeros(len(bm25))
    return DENSE_WEIGHT * cosine.astype(np.float64) + (1 - DENSE_WEIGHT) * scaled


def top(scores: np.ndarray, ids: np.ndarray, k: int) -> np.ndarray:
    """Positions of the k best by (−score, id)."""
    if len(scores) > 4 * k:
        # keep everything that ties with the k-th, so that the ids decide and not the partition
        threshold = np.partition(scores, len(scores) - k)[len(scores) - k]
        kept = np.flatnonzero(scores >= threshold)
    else:
        kept = np.arange(len(scores))
    return kept[np.lexsort((ids[kept], -scores[kept]))][:k]


def weights(mode: Mode, ceiling: float) -> tuple[float, float]:
    """Factors of the cosine and of BM25 in ``fuse``."""
    if mode == "dense":
        return 1.0, 0.0
    if mode == "sparse":
        return 0.0, 1.0
    return DENSE_WEIGHT, (1 - DENSE_WEIGHT) / ceiling if ceiling > 0 else 0.0


@njit(nogil=True, cache=True)
def select(
    cosine: np.ndarray,
    bm25: np.ndarray,
    allowed: np.ndarray,
    cosine_weight: float,
    bm25_weight: float,
    floor: float,
    k: int,
    margin: float,
) -> np.ndarray:  # pragma: no cover - compiled
    """int64: every row whose fused score is above ``floor`` and within ``margin`` of the k-th best, or better.

    cosine, bm25: float32[n]; either may be empty where its weight is 0. allowed: bool[n], or empty for all rows.
    """
    n = max(len(cosine), len(bm25))
    fused = np.empty(n, np.float32)
    heap = np.full(k, -np.inf, np.float32)  # the k best so far, the worst of them on top
    for row in range(n):
        score = np.float32(0)
        if cosine_weight != 0:
            score += np.float32(cosine_weight) * cosine[row]
        if bm25_weight != 0:
            score += np.float32(bm25_weight) * bm25[row]
        if (len(allowed) and not allowed[row]) or score <= floor:
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

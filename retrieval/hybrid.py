"""Dense and sparse scores as one, on a fixed scale.

hybrid = w·cos + (1 − w)·BM25 / ceiling, where the ceiling (the sum of the query terms' idf) depends on the query and
the corpus alone. So the score of a chunk does not depend on which other chunks were found, a ranking over a subset is
the subset of the ranking, and the exact top k can be proved by a bound (Fagin's threshold algorithm). Reciprocal rank
fusion has none of these. Ties are broken by chunk id.
"""

from __future__ import annotations

import numpy as np

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

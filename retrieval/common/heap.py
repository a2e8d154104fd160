"""The k best scores so far, for compiled loops: a heap with the worst of them on top."""

from __future__ import annotations

import numpy as np
from numba import njit


@njit(nogil=True, cache=True)
def replace_worst(heap: np.ndarray, score: np.float32) -> None:  # pragma: no cover - compiled
    """Put a score in the place of the worst, which is heap[0]; float32[k] stays a heap."""
    k, at = len(heap), 0
    while 2 * at + 1 < k:
        child = 2 * at + 1
        if child + 1 < k and heap[child + 1] < heap[child]:
            child += 1
        if heap[child] >= score:
            break
        heap[at] = heap[child]
        at = child
    heap[at] = score

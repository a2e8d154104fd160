"""The loops of ``knn_search``, compiled and run without Python's lock."""

from __future__ import annotations

import numpy as np
from numba import njit

from retrieval.heap import replace_worst

_STRETCH = 64
"""rows looked at together"""


@njit(nogil=True, cache=True, fastmath=True)
def squared_distances(keys: np.ndarray, query: np.ndarray) -> np.ndarray:  # pragma: no cover - compiled
    """float32[n] of float32[n, d] to float32[d]: every row goes through the same compiled loop."""
    n, d = keys.shape
    out = np.empty(n, np.float32)
    for row in range(n):
        total = np.float32(0)
        for i in range(d):
            difference = keys[row, i] - query[i]
            total += difference * difference
        out[row] = total
    return out


@njit(nogil=True, cache=True, fastmath=True)
def squared_distances_of_halves(
    keys: np.ndarray, rows: np.ndarray, query: np.ndarray
) -> np.ndarray:  # pragma: no cover - compiled
    """The same for int64[m] rows of uint16[n, d], the bits of bfloat16."""
    d = keys.shape[1]
    bits = np.empty(d, np.uint32)
    key = bits.view(np.float32)
    out = np.empty(len(rows), np.float32)
    for number in range(len(rows)):
        row = rows[number]
        for i in range(d):
            bits[i] = np.uint32(keys[row, i]) << np.uint32(16)
        total = np.float32(0)
        for i in range(d):
            difference = key[i] - query[i]
            total += difference * difference
        out[number] = total
    return out


@njit(nogil=True, cache=True)
def _widen(products: np.ndarray, start: int, end: int, bits: np.ndarray) -> None:  # pragma: no cover - compiled
    """The rows of uint16[m, b], bits of bfloat16, as those of float32."""
    for row in range(start, end):
        for column in range(products.shape[1]):
            bits[row - start, column] = np.uint32(products[row, column]) << np.uint32(16)


@njit(nogil=True, cache=True)
def _copy(products: np.ndarray, start: int, end: int, bits: np.ndarray) -> None:  # pragma: no cover - compiled
    """The rows of float32[m, b], as bits."""
    wide = products.view(np.uint32)
    for row in range(start, end):
        for column in range(products.shape[1]):
            bits[row - start, column] = wide[row, column]


@njit(nogil=True, cache=True, fastmath={"nnan", "nsz"})
def _scored(values: np.ndarray, norms: np.ndarray, start: int, largest: np.ndarray) -> None:  # pragma: no cover
    """2·product − norm in place, and the largest of each column: the hot loop, over neighbouring numbers."""
    largest[:] = -np.inf
    for row in range(len(values)):
        norm = norms[start + row]
        for column in range(values.shape[1]):
            score = np.float32(2) * values[row, column] - norm
            values[row, column] = score
            largest[column] = max(largest[column], score)


@njit(nogil=True, cache=True)
def keep_nearest(
    products: np.ndarray,
    norms: np.ndarray,
    first: int,
    begin: int,
    parts: np.ndarray,
    asked: np.ndarray,
    margins: np.ndarray,
    heaps: np.ndarray,
    counts: np.ndarray,
    rows: np.ndarray,
    scores: np.ndarray,
) -> int:  # pragma: no cover - compiled
    """Keep the rows within each query's margin of its k-th best score so far, and the k best scores in its heap.

    products: float32 or the bits of bfloat16 [m, ≥ b] of the rows from ``first`` on; looked at from row ``begin`` on,
    in stretches of which most hold nothing of interest. heaps: float32[b, k]. rows, scores [b, room], filled up to
    counts int64[b]. Returns −1, or the row to begin again with when there is more room.
    """
    bits = np.empty((_STRETCH, products.shape[1]), np.uint32)
    values = bits.view(np.float32)
    largest = np.empty(products.shape[1], np.float32)
    for part in range(len(parts) - 1):
        for start in range(max(parts[part], begin), parts[part + 1], _STRETCH):
            end = min(start + _STRETCH, parts[part + 1])
            for query in range(len(heaps)):
                if counts[query] + _STRETCH > rows.shape[1]:
                    counts[query] = _compact(
                        rows[query], scores[query], counts[query], heaps[query, 0] - margins[query]
                    )
                    if counts[query] + _STRETCH > rows.shape[1]:
                        return start
            if products.itemsize == 2:
                _widen(products, start, end, bits)
            else:
                _copy(products, start, end, bits)
            _scored(values[: end - start], norms, start, largest)
            for query in range(len(heaps)):
                if not asked[query, part] or largest[query] < heaps[query, 0] - margins[query]:
                    continue
                for row in range(end - start):
                    score = values[row, query]
                    if score < heaps[query, 0] - margins[query]:
                        continue
                    rows[query, counts[query]] = first + start + row
                    scores[query, counts[query]] = score
                    counts[query] += 1
                    if score > heaps[query, 0]:
                        replace_worst(heaps[query], score)
    return -1


@njit(nogil=True, cache=True)
def _compact(rows: np.ndarray, scores: np.ndarray, count: int, least: float) -> int:  # pragma: no cover - compiled
    """Drop what has fallen behind; returns how many are left."""
    kept = 0
    for i in range(count):
        if scores[i] >= least:
            rows[kept], scores[kept] = rows[i], scores[i]
            kept += 1
    return kept

"""The loops of ``knn_search``, compiled and run without Python's lock."""

from __future__ import annotations

import numpy as np
from numba import njit

from retrieval.common.heap import replace_worst

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
def _widen(products: np.ndarray, bits: np.ndarray) -> None:  # pragma: no cover - compiled
    """uint16[n], the bits of bfloat16, as those of float32."""
    for i in range(len(products)):
        bits[i] = np.uint32(products[i]) << np.uint32(16)


@njit(nogil=True, cache=True, fastmath={"nnan", "nsz"})
def _largest(
    values: np.ndarray, rest: np.ndarray, columns: int, largest: np.ndarray
) -> None:  # pragma: no cover - compiled
    """The largest score of each column, of float32[n × columns]: the hot loop, whose unsigned indices need no check."""
    largest[:] = -np.inf
    for row in range(np.uintp(len(rest))):
        added, first = rest[row], row * np.uintp(columns)
        for column in range(np.uintp(columns)):
            score, best = values[first + column] + added, largest[column]
            largest[column] = score if score > best else best


@njit(nogil=True, cache=True)
def least_score_within(distance: float, bound: np.ndarray) -> float:  # pragma: no cover - compiled
    """The least score that a row at that distance (not squared) or nearer can have; see ``knn_scan.error_bound``."""
    at_zero, square, linear, constant, final = bound
    t = distance * (1 + 2 * final)
    return (at_zero - (t * t + square * t * t + linear * t + constant)) / 2


@njit(nogil=True, cache=True)
def least_score(kth: float, bound: np.ndarray) -> float:  # pragma: no cover - compiled
    """The least score of a row that can be among the k nearest, the k-th best score being ``kth``.

    The k rows lie within t, the greater root of (1 − β)t² − γt − κ = A − 2·kth, and so do the k nearest.
    """
    at_zero, square, linear, constant, _ = bound
    if kth == -np.inf:
        return kth
    apart = max(0.0, at_zero - 2 * kth + constant)
    t = (linear + np.sqrt(linear * linear + 4 * (1 - square) * apart)) / (2 * (1 - square))
    return least_score_within(t, bound)


@njit(nogil=True, cache=True, fastmath={"nnan", "nsz"})
def split_addends(
    norms: np.ndarray, constant: np.float32, rounded: np.ndarray, rest: np.ndarray
) -> None:  # pragma: no cover - compiled
    """constant − norm/2, rounded to bfloat16 (uint16[n], its bits), and float32[n] what that leaves."""
    bits = np.empty(_STRETCH, np.uint32)
    numbers = bits.view(np.float32)
    for start in range(0, len(norms), _STRETCH):
        some, out, left = norms[start : start + _STRETCH], rounded[start : start + _STRETCH], rest[start:]
        for i in range(len(some)):
            numbers[i] = constant - some[i] / np.float32(2)
            left[i] = numbers[i]
        for i in range(len(some)):
            bits[i] = (bits[i] + np.uint32(0x7FFF) + ((bits[i] >> np.uint32(16)) & np.uint32(1))) & np.uint32(
                0xFFFF0000
            )
            out[i] = bits[i] >> np.uint32(16)
        for i in range(len(some)):
            left[i] -= numbers[i]


@njit(nogil=True, cache=True)
def keep_nearest(
    products: np.ndarray,
    rest: np.ndarray,
    first: int,
    begin: int,
    parts: np.ndarray,
    asked: np.ndarray,
    bounds: np.ndarray,
    heaps: np.ndarray,
    least: np.ndarray,
    counts: np.ndarray,
    rows: np.ndarray,
    scores: np.ndarray,
) -> int:  # pragma: no cover - compiled
    """Keep the rows that can be among each query's nearest by their scores, and the k best scores in its heap.

    products: float32 or the bits of bfloat16 [m, ≥ b] of the rows from ``first`` on; looked at from row ``begin`` on,
    in stretches of which most hold nothing of interest. heaps: float32[b, k]; least: float32[b], by ``least_score``.
    rows, scores [b, room], filled up to counts int64[b]. Returns −1, or the row to begin again with when there is more
    room.
    """
    columns = products.shape[1]
    bits = np.empty(_STRETCH * columns, np.uint32)
    widened = bits.view(np.float32)
    largest = np.empty(columns, np.float32)
    flat = products.reshape(-1)
    for part in range(len(parts) - 1):
        for start in range(max(parts[part], begin), parts[part + 1], _STRETCH):
            end = min(start + _STRETCH, parts[part + 1])
            for query in range(len(heaps)):
                if counts[query] + _STRETCH > rows.shape[1]:
                    counts[query] = _compact(rows[query], scores[query], counts[query], least[query])
                    if counts[query] + _STRETCH > rows.shape[1]:
                        return start
            if products.itemsize == 2:
                _widen(flat[start * columns : end * columns], bits)
                values = widened
            else:
                values = flat[start * columns : end * columns].view(np.float32)
            _largest(values, rest[start:end], columns, largest)
            for query in range(len(heaps)):
                if not asked[query, part] or largest[query] < least[query]:
                    continue
                for row in range(end - start):
                    score = values[row * columns + query] + rest[start + row]
                    if score < least[query]:
                        continue
                    rows[query, counts[query]] = first + start + row
                    scores[query, counts[query]] = score
                    counts[query] += 1
                    if score > heaps[query, 0]:
                        replace_worst(heaps[query], score)
                        least[query] = least_score(heaps[query, 0], bounds[query])
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

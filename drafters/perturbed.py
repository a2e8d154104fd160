"""argmax(logits / T + g) on a CPU, drawing the noise only where it could matter.

The noise is that of `sampling.noise`, bit for bit up to the logarithms. Most tokens lie so far below the best score
that no noise could lift them (it is below 37); for the others the random bits alone bound it: with u the uniform,
-log(-log u) <= -log(1 - u), whose integer part in base 2 is the number of leading ones of u. The logarithms are taken
of the few that remain.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_LARGEST = 37.0  # above every value of the noise
_BITS = 52


@njit(cache=True, inline="always")
def _mix(x):
    x = (x ^ (x >> np.uint64(30))) * _MIX_1
    x = (x ^ (x >> np.uint64(27))) * _MIX_2
    return x ^ (x >> np.uint64(31))


@njit(cache=True, inline="always")
def _gumbel(bits):
    return -math.log(-math.log((np.float64(bits >> np.uint64(12)) + 0.5) * 2.0**-52))


@njit(cache=True, nogil=True)
def largest_perturbed(logits, temperature, seeds, positions):
    """int64 [N]: the token of the largest perturbed score of each row, the lowest of equals.

    logits float32 or float64 [N, V], temperature float64 [N] > 0, seeds and positions uint64 [N].
    """
    rows, vocab = logits.shape
    picked = np.empty(rows, np.int64)
    for row in range(rows):
        key = _mix(_mix(seeds[row] + _GOLDEN) ^ (positions[row] * _GOLDEN))
        top = 0
        for token in range(1, vocab):
            if logits[row, token] > logits[row, top]:
                top = token
        best = np.float64(logits[row, top]) / temperature[row] + _gumbel(_mix(key + np.uint64(top + 1) * _GOLDEN))
        chosen = top
        for token in range(vocab):
            if token == top:
                continue
            value = np.float64(logits[row, token]) / temperature[row]
            needed = best - value  # the noise that would be enough
            if not needed <= _LARGEST:
                continue
            bits = _mix(key + np.uint64(token + 1) * _GOLDEN)
            if needed > 1.0:
                # 1 - u must not exceed exp(-needed) < 2^-ones
                ones = int(needed * 1.4426950408889634)
                if ones > _BITS:
                    ones = _BITS
                rest = (np.int64(1) << _BITS) - np.int64(bits >> np.uint64(12))
                if rest - 1 > (np.int64(1) << (_BITS - ones)):
                    continue
            score = value + _gumbel(bits)
            if score > best or (score == best and token < chosen):
                best = score
                chosen = token
        picked[row] = chosen
    return picked

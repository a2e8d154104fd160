"""argmax(logits / T + g) on a CPU, drawing the noise only where it could matter.

The noise is that of `sampling.noise`, bit for bit up to the logarithms. Most tokens lie so far below the best score
that no noise could lift them (it is below 37). The others are gone through by blocks: the noise grows with the random
bits, so the largest logit of a block and the noise of its largest bits bound its scores. In the blocks that remain the
random bits alone bound the noise of a token: with u the uniform, -log(-log u) <= -log(1 - u), whose integer part in
base 2 is the number of leading ones of u. The logarithms are taken of the few tokens left.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numba import njit

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_LARGEST = 37.0  # above every value of the noise
_BITS = 52
_BLOCK = 256


@njit(cache=True, inline="always")
def _stir(x):
    """`_mix` without its last shift, which leaves the upper 31 bits as they are."""
    x = (x ^ (x >> np.uint64(30))) * _MIX_1
    return (x ^ (x >> np.uint64(27))) * _MIX_2


@njit(cache=True, inline="always")
def _mix(x):
    x = _stir(x)
    return x ^ (x >> np.uint64(31))


@njit(cache=True, inline="always")
def _gumbel(bits):
    return -math.log(-math.log((np.float64(bits >> np.uint64(12)) + 0.5) * 2.0**-52))


@njit(cache=True)
def _largest_bits(key, first, count):
    """At least the random bits of tokens first … first + count - 1, and no more than 2^33 above the largest."""
    best = np.uint64(0)
    base = key + np.uint64(first + 1) * _GOLDEN
    for i in range(count):
        bits = _stir(base + np.uint64(i) * _GOLDEN)
        if bits > best:
            best = bits
    return best | np.uint64(0x1FFFFFFFF)


def largest_of_blocks(values: np.ndarray, size: int) -> np.ndarray:
    """The largest of every `size` values of each row [N, V]; the last block may be shorter.

    torch's reduction is twice to four times as fast as NumPy's `maximum.reduceat`, that six times as a compiled loop.
    """
    rows, whole = torch.from_numpy(values), values.shape[1] // size
    peaks = torch.empty((len(values), -(-values.shape[1] // size)), dtype=rows.dtype)
    if whole:
        torch.amax(rows[:, : whole * size].unflatten(1, (whole, size)), -1, out=peaks[:, :whole])
    if whole < peaks.shape[1]:
        torch.amax(rows[:, whole * size :], -1, out=peaks[:, whole])
    return peaks.numpy()


def largest_perturbed(
    logits: np.ndarray, temperature: np.ndarray, seeds: np.ndarray, positions: np.ndarray
) -> np.ndarray:
    """int64 [N]: the token of the largest perturbed score of each row, the lowest of equals.

    logits float32 or float64 [N, V], temperature float64 [N] > 0, seeds and positions uint64 [N].
    """
    peaks = largest_of_blocks(logits, _BLOCK) / temperature[:, None]
    return _largest_perturbed(logits, peaks, temperature, seeds, positions)


@njit(cache=True, nogil=True)
def _largest_perturbed(logits, row_peaks, temperature, seeds, positions):
    """`largest_perturbed`; row_peaks float64 [N, blocks]: the largest of logits / temperature in each block."""
    rows, vocab = logits.shape
    picked = np.empty(rows, np.int64)
    for row in range(rows):
        key = _mix(_mix(seeds[row] + _GOLDEN) ^ (positions[row] * _GOLDEN))
        peaks = row_peaks[row]
        # the largest logit first: its score spares most of the others
        start = int(np.argmax(peaks))
        chosen = start * _BLOCK + int(np.argmax(logits[row, start * _BLOCK : min((start + 1) * _BLOCK, vocab)]))
        best = np.float64(logits[row, chosen]) / temperature[row] + _gumbel(_mix(key + np.uint64(chosen + 1) * _GOLDEN))
        for block in range(len(peaks)):
            needed = best - peaks[block]
            if needed > _LARGEST:
                continue
            first = block * _BLOCK
            end = min(first + _BLOCK, vocab)
            # a hair more than the bound, for the logarithms' last bits
            if needed > _gumbel(_largest_bits(key, first, end - first)) + 1e-9:
                continue
            for token in range(first, end):
                value = np.float64(logits[row, token]) / temperature[row]
                needed = best - value  # the noise that would be enough
                if token == chosen or not needed <= _LARGEST:
                    continue
                bits = _mix(key + np.uint64(token + 1) * _GOLDEN)
                if needed > 1.0:
                    # the noise is at most -log(1 - u): 1 - u must not exceed exp(-needed) < 2^-ones
                    ones = min(int(needed * 1.4426950408889634), _BITS)
                    rest = (np.int64(1) << _BITS) - np.int64(bits >> np.uint64(12))
                    if rest - 1 > (np.int64(1) << (_BITS - ones)):
                        continue
                score = value + _gumbel(bits)
                if score > best or (score == best and token < chosen):
                    best = score
                    chosen = token
        picked[row] = chosen
    return picked

"""argmax(logits / T + g) on a CPU, drawing the noise only where it could matter.

The noise is that of `noise.noise`, bit for bit up to the logarithms. The largest logit of a block of tokens and the
largest noise of the block, which is one hash, bound its scores; few blocks can beat the best score so far, and in these
few tokens. A logarithm is taken only where a cheaper bound leaves the matter open: -log u >= 1 - u.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from drafters.sampling import noise
from drafters.verify import NO_TOKEN

_BLOCK = noise.BLOCK
_GOLDEN = np.uint64(noise.GOLDEN)
_BLOCK_STEP = np.uint64(noise.BLOCK_STEP)
_MIX_1 = np.uint64(noise.MIX_1)
_MIX_2 = np.uint64(noise.MIX_2)
_LARGEST = 43.0  # above every value of the noise
_HAIR = 1e-9  # more than the last bits of logarithms and quotients


@njit(cache=True, inline="always")
def _mix(x):
    x = (x ^ (x >> np.uint64(30))) * _MIX_1
    x = (x ^ (x >> np.uint64(27))) * _MIX_2
    return x ^ (x >> np.uint64(31))


@njit(cache=True, inline="always")
def _unit(bits):
    return (np.float64(bits >> np.uint64(12)) + 0.5) * 2.0**-52


@njit(cache=True, inline="always")
def _block_bits(key, block):
    return _mix(key + np.uint64(block + 1) * _BLOCK_STEP)


@njit(cache=True, inline="always")
def _own_unit(key, token):
    """The uniform of a token's own exponential."""
    return _unit(_mix(key + np.uint64(token + 1) * _GOLDEN))


@njit(cache=True, inline="always")
def _largest_bits(bits):
    """The largest of floats given by their bits, again as bits.

    As integers they are ordered alike, but for the negative ones, whose order is reversed. Compilers make vector code
    of a maximum of integers, not of one of floats, whose NaNs would be lost.
    """
    number = bits.dtype.type  # or Numba would widen every operation
    rest = number(~(np.int64(-1) << (8 * bits.itemsize - 1)))  # all bits but the sign
    best = number(~rest)
    for i in range(len(bits)):
        best = max(best, number(bits[i] ^ (rest if bits[i] < 0 else number(0))))
    return number(best ^ (rest if best < 0 else number(0)))


@njit(cache=True, inline="always")
def fill_peaks(peaks, bits, size):
    """The largest of every `size` values of a row, all of them as bits."""
    for block in range(len(peaks)):
        peaks[block] = _largest_bits(bits[block * size : (block + 1) * size])


def largest_perturbed(
    logits: np.ndarray, temperature: np.ndarray, seeds: np.ndarray, positions: np.ndarray
) -> np.ndarray:
    """int64 [N]: the token of the largest perturbed score of each row, the lowest of equals.

    logits float32 or float64 [N, V], temperature float64 [N] >= 0, seeds and positions int64 [N].
    """
    return best_perturbed(logits, temperature, seeds, positions, 1)[0][:, 0]


def best_perturbed(
    logits: np.ndarray, temperature: np.ndarray, seeds: np.ndarray, positions: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """The tokens of the largest perturbed scores of each row, int64 [N, count], and these, float64, descending.

    As for `largest_perturbed`; scores are without the constant that makes probabilities of logits, and at temperature 0
    the first is a row's largest logit and the others are not defined. count is at most V.
    """
    return _best(logits, as_bits(logits), temperature, seeds, positions, count)


def walk_perturbed(
    logits: np.ndarray, tokens: np.ndarray, parents: np.ndarray, temperature: float, seed: int, position: int
) -> tuple[np.ndarray, np.ndarray]:
    """The path through a tree of n nodes along the tokens of the largest perturbed scores, int64 [m], and these tokens,
    int64 [m + 1]; rows that are not on the path are not looked at. The last token is NO_TOKEN where the best score of
    its row is no number.

    logits float32 or float64 [n + 1, V], of the root and the nodes; tokens and parents int64 [n] as in `DraftTree`;
    position is that of the token after the root.
    """
    return _walk(logits, as_bits(logits), tokens, parents, float(temperature), seed, position)


def as_bits(values: np.ndarray) -> np.ndarray:
    """float32 or float64 as integers of the same bits."""
    return values.view(np.int32 if values.itemsize == 4 else np.int64)


@njit(cache=True)
def _noise(key, token):
    bits = _block_bits(key, token // _BLOCK)
    exponential = -math.log(_unit(bits)) / _BLOCK
    if np.int64(bits & np.uint64(_BLOCK - 1)) != token % _BLOCK:
        exponential -= math.log(_own_unit(key, token))
    return -math.log(exponential)


@njit(cache=True, nogil=True)
def _best(logits, logit_bits, temperature, seeds, positions, count):
    rows, vocab = logits.shape
    tokens = np.zeros((rows, count), np.int64)
    scores = np.full((rows, count), -np.inf)
    peaks = np.empty(-(-vocab // _BLOCK), logit_bits.dtype)
    for row in range(rows):
        _rank(
            logits[row], logit_bits[row], temperature[row], seeds[row], positions[row], peaks, tokens[row], scores[row]
        )
    return tokens, scores


@njit(cache=True, nogil=True)
def _walk(logits, logit_bits, tokens, parents, heat, seed, position):
    peaks = np.empty(-(-logits.shape[1] // _BLOCK), logit_bits.dtype)
    best, score = np.empty(1, np.int64), np.empty(1)
    path, chosen = np.empty(len(tokens), np.int64), np.empty(len(tokens) + 1, np.int64)
    reached, accepted = -1, 0
    _rank(logits[0], logit_bits[0], heat, seed, position, peaks, best, score)
    chosen[0] = best[0] if math.isfinite(score[0]) else NO_TOKEN
    # one pass: a parent precedes its children
    for node in range(len(tokens)):
        if parents[node] == reached and tokens[node] == chosen[accepted]:
            reached = node
            path[accepted] = node
            accepted += 1
            _rank(logits[node + 1], logit_bits[node + 1], heat, seed, position + accepted, peaks, best, score)
            chosen[accepted] = best[0] if math.isfinite(score[0]) else NO_TOKEN
    return path[:accepted], chosen[: accepted + 1]


@njit(cache=True, nogil=True)
def _rank(logits, logit_bits, heat, seed, position, peak_bits, tokens, scores):
    """Fill the best `tokens` of a row and their `scores`, which but for the first come as -inf; `peak_bits` is room for
    the peaks."""
    fill_peaks(peak_bits, logit_bits, _BLOCK)
    peaks = peak_bits.view(logits.dtype)
    # the largest logit first: its score spares most of the others
    start = int(np.argmax(peaks))
    token = start * _BLOCK + int(np.argmax(logits[start * _BLOCK : (start + 1) * _BLOCK]))
    tokens[0] = token
    scores[0] = logits[token]
    if heat > 0:
        key = _mix(_mix(np.uint64(seed) + _GOLDEN) ^ (np.uint64(position) * _GOLDEN))
        scores[0] = np.float64(logits[token]) / heat + _noise(key, token)
        _perturb(logits, peaks, heat, key, token, start, tokens, scores)


@njit(cache=True, nogil=True)
def _perturb(logits, peaks, heat, key, known, start, tokens, scores):
    """Fill the best `tokens` and `scores` of a row, which begin with those of `known`, a token of block `start`."""
    last = len(scores) - 1
    for turn in range(-1, len(peaks)):
        if turn == start:
            continue
        block = start if turn < 0 else turn
        needed = scores[last] - np.float64(peaks[block]) / heat - _HAIR  # the noise that would be enough
        if not needed <= _LARGEST:
            continue
        bits = _block_bits(key, block)
        if 1.0 - _unit(bits) > _BLOCK * math.exp(-needed):
            continue
        least = -math.log(_unit(bits)) / _BLOCK
        place = np.int64(bits & np.uint64(_BLOCK - 1))
        # the smallest logit that the largest noise of the block could lift to the last of the best
        floor = (scores[last] + math.log(least) - _HAIR) * heat
        first = block * _BLOCK
        for token in range(first, min(first + _BLOCK, len(logits))):
            if logits[token] < floor or token == known:
                continue
            value = np.float64(logits[token]) / heat
            exponential = least
            if token - first != place:
                own = _own_unit(key, token)
                if least + (1.0 - own) > math.exp(value - scores[last] + _HAIR):
                    continue
                exponential -= math.log(own)
            insert(value - math.log(exponential), token, tokens, scores)


@njit(cache=True, inline="always")
def insert(score, token, tokens, scores):
    """Put a token among the best, before its equals of higher ids; the last falls out."""
    place = len(scores)
    while place > 0 and (scores[place - 1] < score or (scores[place - 1] == score and token < tokens[place - 1])):
        place -= 1
    for after in range(len(scores) - 1, place, -1):
        tokens[after] = tokens[after - 1]
        scores[after] = scores[after - 1]
    if place < len(scores):
        tokens[place] = token
        scores[place] = score

"""The target's best successors of rows of a step, found faster than by a sort."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numba import njit
from torch import Tensor

from drafters.base import TopSuccessors
from drafters.sampling.perturbed import as_bits, fill_peaks, insert

_BLOCK = 128
_LOG2_E = np.float32(math.log2(math.e))
_SMALLEST = np.float32(-126.0)  # the exponent of the smallest normal float32
_LEFT_OUT = 1e-2  # at most that share of the largest probability goes uncounted where probabilities are summed


@njit(cache=True, nogil=True, fastmath={"contract", "reassoc", "nsz"})
def _exponentials(logits, most):
    """The sum of exp(logits - most), of which none is above 1, to 1e-6 of itself.

    exp x = 2^n 2^f: n goes into the exponent's bits, 2^f is a polynomial (minimax on [0, 1)). This becomes vector code;
    a call of the library's exp does not.
    """
    total = np.float32(0)
    for i in range(len(logits)):
        power = max((logits[i] - most) * _LOG2_E, _SMALLEST)
        whole = np.floor(power)
        f = power - whole
        part = np.float32(1.8775767e-3)
        part = part * f + np.float32(8.9893397e-3)
        part = part * f + np.float32(5.5826318e-2)
        part = part * f + np.float32(2.4015361e-1)
        part = part * f + np.float32(6.9315308e-1)
        part = part * f + np.float32(9.9999994e-1)
        bits = np.float32(part).view(np.int32) + (np.int32(whole) << np.int32(23))
        total += np.int32(bits).view(np.float32)
    return total


@njit(cache=True, nogil=True)
def _best(logits, bits, rows, count):
    """Ids int64 [n, count] and log-probabilities [n, count] of the largest entries of the n `rows`, in descending order
    and the lowest id of equals first; `bits` are those of the logits."""
    vocab = logits.shape[1]
    ids = np.empty((len(rows), count), np.int64)
    values = np.empty((len(rows), count), logits.dtype)
    peak_bits = np.empty(-(-vocab // _BLOCK), bits.dtype)
    peaks = peak_bits.view(logits.dtype)
    for row, source in enumerate(rows):
        fill_peaks(peak_bits, bits[source], _BLOCK)
        # as many blocks have an entry that is no smaller than the last of these: nothing below it is wanted
        ids[row], values[row] = vocab, -np.inf
        for block in range(len(peaks)):
            insert(peaks[block], block, ids[row], values[row])
        least = values[row, count - 1]
        ids[row], values[row] = vocab, -np.inf
        for block in range(len(peaks)):
            if peaks[block] < least:
                continue
            for token in range(block * _BLOCK, min((block + 1) * _BLOCK, vocab)):
                if not logits[source, token] < least:
                    insert(logits[source, token], token, ids[row], values[row])
        most = values[row, 0]
        counted = most + math.log(_LEFT_OUT / vocab)
        total = np.float32(0)
        for block in range(len(peaks)):
            if peaks[block] > counted:
                total += _exponentials(logits[source, block * _BLOCK : (block + 1) * _BLOCK], most)
        values[row] -= most + math.log(total)
    return ids, values


def top_successors(logits: Tensor, rows: Sequence[int], count: int) -> TopSuccessors:
    """The `count` most probable tokens after some rows of logits [n, V], any float dtype and device. On a CPU very
    improbable tokens are not counted: log-probabilities are up to 0.01 too large."""
    count = min(count, logits.shape[-1])
    if logits.is_cpu:
        every = logits.float().contiguous().numpy()
        return TopSuccessors(*_best(every, as_bits(every), np.array(rows), count))
    best = torch.topk(torch.log_softmax(logits[rows].float(), -1), count, dim=-1)
    return TopSuccessors(best.indices.cpu().numpy(), best.values.cpu().numpy())

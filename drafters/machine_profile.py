"""How long a forward takes on this machine, learned from the steps that the engine has run."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numba import njit

_ROWS, _KEYS = 8.0, 16384.0  # units of rows and of tokens of context
_FORGET = 0.98
_RIDGE = 1e-3


class MachineProfile:
    """Seconds of a forward = a + b·rows + c·Σ context + d·Σ rows·context, all >= 0, fitted as steps come in.

    The terms are the fixed cost, the weights' work, the KV bytes read and the attention's work. Steps are
    weighted by 1/seconds², so the relative error counts, and forgotten slowly, so the machine may change.
    """

    def __init__(self) -> None:
        self._normal = np.zeros((4, 4))
        self._moment = np.zeros(4)
        self._steps = 0
        self._fit = np.zeros(4)

    def record(self, rows: Sequence[int], contexts: Sequence[int], seconds: float) -> None:
        """One forward: rows and context tokens of each sequence, and how long it took (decode steps only)."""
        self._steps += 1
        self._fit = _learn(*_work(rows, contexts), seconds, self._normal, self._moment)

    @property
    def ready(self) -> bool:
        """Whether enough steps were seen to predict anything."""
        return self._steps >= 4

    def seconds(self, rows: Sequence[int], contexts: Sequence[int]) -> float:
        """The predicted time of a forward; 0 before any step was seen."""
        return float(_predict(self._fit, *_work(rows, contexts)))

    def step_times(self, batch: int, context: int, most: int) -> np.ndarray:
        """Predicted seconds [most + 1] of a step of `batch` such sequences with 0 … most nodes each."""
        return _step_times(self._fit, batch, context, most)


def _work(rows: Sequence[int], contexts: Sequence[int]) -> tuple[int, int, int]:
    """Rows, tokens of context and products of the two that a forward goes through, of all its sequences."""
    # a handful of sequences: Python's sums take less than NumPy's
    return sum(rows), sum(contexts), sum(r * c for r, c in zip(rows, contexts, strict=True))


@njit(cache=True)
def _terms(rows, keys, products):
    """What the coefficients stand before, all of them near 1."""
    return 1.0, rows / _ROWS, keys / _KEYS, products / (_ROWS * _KEYS)


@njit(cache=True)
def _predict(fit, rows, keys, products):
    one, rows, keys, products = _terms(rows, keys, products)
    return fit[0] * one + fit[1] * rows + fit[2] * keys + fit[3] * products


@njit(cache=True)
def _step_times(fit, batch, context, most):
    times = np.empty(most + 1)
    for nodes in range(most + 1):
        rows = batch * (1 + nodes)
        times[nodes] = _predict(fit, rows, batch * context, rows * context)
    return times


@njit(cache=True)
def _learn(rows, keys, products, seconds, normal, moment):
    """Add a step to the sums; the coefficients that fit them best."""
    one, rows, keys, products = _terms(rows, keys, products)
    x = (one / seconds, rows / seconds, keys / seconds, products / seconds)
    for i in range(len(x)):
        moment[i] = _FORGET * moment[i] + x[i]
        for j in range(len(x)):
            normal[i, j] = _FORGET * normal[i, j] + x[i] * x[j]
    return _non_negative(normal, moment)


@njit(cache=True)
def _non_negative(normal, moment):
    """Least squares with the most negative coefficient dropped until none is negative."""
    size = len(moment)
    ridge = _RIDGE * max(np.trace(normal) / size, 1e-12)
    active = np.ones(size, np.bool_)
    while True:
        # a dropped coefficient's equation is x = 0
        a, b = np.eye(size), np.zeros(size)
        for i in np.flatnonzero(active):
            b[i] = moment[i]
            for j in np.flatnonzero(active):
                a[i, j] = normal[i, j] + (ridge if i == j else 0.0)
        _solve(a, b)
        worst = np.argmin(b)
        if b[worst] >= 0:
            return b
        active[worst] = False


@njit(cache=True)
def _solve(a, b):
    """Put x of a x = b into b; a is symmetric and positive definite, so that elimination needs no pivots."""
    size = len(b)
    for i in range(size):
        for row in range(i + 1, size):
            factor = a[row, i] / a[i, i]
            a[row] -= factor * a[i]
            b[row] -= factor * b[i]
    for i in range(size - 1, -1, -1):
        for known in range(i + 1, size):
            b[i] -= a[i, known] * b[known]
        b[i] /= a[i, i]

"""SmartSpec (arXiv 2406.14066): verify as many nodes as raise the tokens per second, none if none do.

E[tokens] = 1 + the sum of the nodes' path scores; the time of a step comes from a machine profile fitted to
the steps the engine has run. Because the profile is measured, the budget knows whether rows are nearly free
(a GPU) or not.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numba import njit

from drafters.base import Drafter, RequestState, TopSuccessors
from drafters.tree import EMPTY, DraftTree
from drafters.verify import Verdict

_ROWS, _KEYS = 8.0, 16384.0  # units of rows and of tokens of context
_FORGET = 0.98
_RIDGE = 1e-3
_SLACK = 0.05  # the best size lies on a flat top; more nodes teach more and save steps
_UNMEASURED = 4  # nodes verified while nothing is known of the machine: enough to learn what rows cost


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


def best_budget(scores: np.ndarray, times: np.ndarray, drafting: float = 0.0, slack: float = 0.0) -> tuple[int, float]:
    """How many nodes to verify, and the tokens per second expected of it.

    scores float64 [n] path scores, of which the best are verified; times float64 [>= n + 1] seconds of a step with
    0, 1, … nodes. With `slack` the most nodes whose rate is within that share of the best; none still if none is best.
    """
    return _best_budget(scores, times, drafting, slack)


@njit(cache=True)
def _best_budget(scores, times, drafting, slack):
    ascending = np.sort(scores)
    count = len(scores)
    rates = np.empty(count + 1)
    expected = 1.0
    best = 0
    for nodes in range(count + 1):
        if nodes:
            expected += ascending[count - nodes]
        rates[nodes] = expected / max(times[nodes] + drafting, 1e-9)
        if rates[nodes] > rates[best]:
            best = nodes
    if best and slack:
        enough = (1 - slack) * rates[best]
        best = count
        while rates[best] < enough:
            best -= 1
    return best, rates[best]


class Goodput:
    """The drafter `goodput`: another drafter's tree, cut to the size that pays now."""

    name = "goodput"

    def __init__(self, inner: Drafter, profile: MachineProfile) -> None:
        self._inner = inner
        self._profile = profile

    @property
    def needs_topk(self) -> int:
        return self._inner.needs_topk

    @property
    def ready(self) -> bool:
        return self._inner.ready

    def start(self, state: RequestState) -> None:
        self._inner.start(state)

    def propose(self, state: RequestState, budget: int) -> DraftTree:
        tree = self._inner.propose(state, budget).ended_by(state.stops)
        if not len(tree):
            return tree
        if not self._profile.ready:
            return tree.trim(_UNMEASURED)
        times = self._profile.step_times(state.batch_size, len(state.tokens), len(tree))
        nodes, _ = best_budget(tree.scores, times, slack=_SLACK)
        return tree.trim(nodes) if nodes else EMPTY

    def observe(self, state: RequestState, tree: DraftTree, verdict: Verdict, top: TopSuccessors | None) -> None:
        self._inner.observe(state, tree, verdict, top)

    def finish(self, state: RequestState) -> None:
        self._inner.finish(state)

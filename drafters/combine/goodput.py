"""SmartSpec (arXiv 2406.14066): verify as many nodes as raise the tokens per second, none if none do.

E[tokens] = 1 + the sum of the nodes' path scores; the time of a step is what `machine_profile` predicts. Because the
profile is measured, the budget knows whether rows are nearly free (a GPU) or not.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from torch import Tensor

from drafters.base import Drafter, RequestState, TopSuccessors
from drafters.machine_profile import MachineProfile
from drafters.tree import DraftTree
from drafters.verify import Verdict

_SLACK = 0.02
"""The best size lies on a flat top; more nodes teach more and save steps. Set on SmolLM2, tried on Qwen2.5."""
_UNMEASURED = 4  # nodes verified while nothing is known of the machine: enough to learn what rows cost


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


class Goodput(Drafter):
    """The drafter `goodput`: another drafter's tree, cut to the size that pays now."""

    name = "goodput"

    def __init__(self, inner: Drafter, profile: MachineProfile) -> None:
        self._inner = inner
        self._profile = profile
        self.layers, self.window = inner.layers, inner.window
        self.looks, self.appends = inner.looks, inner.appends

    @property
    def ready(self) -> bool:
        return self._inner.ready

    def start(self, state: RequestState) -> None:
        self._inner.start(state)

    def read(self, start: int, states: Tensor) -> None:
        self._inner.read(start, states)

    def propose(self, state: RequestState, budget: int) -> DraftTree:
        tree = self._inner.propose(state, budget)
        self.needs_topk = self._inner.needs_topk
        return tree

    def worth(self, state: RequestState, tree: DraftTree) -> int:
        if not len(tree):
            return 0
        if not self._profile.ready:
            return _UNMEASURED
        times = self._profile.step_times(state.batch_size, len(state.tokens), len(tree))
        return best_budget(tree.scores, times, slack=_SLACK)[0]

    def append(self, state: RequestState, tree: DraftTree, room: int) -> DraftTree:
        return self._inner.append(state, tree, room)

    def look(self, tree: DraftTree, states: Tensor) -> None:
        self._inner.look(tree, states)

    def observe(self, state: RequestState, tree: DraftTree, verdict: Verdict, top: TopSuccessors | None) -> None:
        self._inner.observe(state, tree, verdict, top)

    def finish(self, state: RequestState) -> None:
        self._inner.finish(state)

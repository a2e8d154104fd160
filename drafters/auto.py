"""The default: guess where guessing pays, never where it does not."""

from __future__ import annotations

import math

from drafters.base import RequestState, TopSuccessors
from drafters.cascade import Together
from drafters.goodput import Goodput, MachineProfile
from drafters.tree import EMPTY, DraftTree
from drafters.verify import Verdict

_FUTILE = 0.05  # accepted tokens a step below which guessing rests
_COPYING = 4.0  # copied tokens a step, promised and had, above which the target's successors are left alone
_SLOW, _FAST = 0.1, 0.5  # weights of the newest step in the running means that these two are held to
_REST = 8  # of a resting drafter's steps, one is tried


class Auto(Goodput):
    """The drafter `auto`: all free sources fused, cut by goodput to what pays at this batch and context.

    Even a guess that is not verified costs a little (look-ups, the target's best successors). Where nothing has
    been accepted for a while it is spared in most steps, until a try succeeds; where copying promises much, and has
    kept it so far, only the successors are.
    """

    name = "auto"

    def __init__(self, retrieval: Together, profile: MachineProfile) -> None:
        super().__init__(retrieval, profile)
        self._retrieval = retrieval
        self._accepted = 1.0
        self._copied = math.inf  # accepted tokens a step that came from elsewhere than the target's successors
        self._learners = {source.name for source in retrieval.sources if source.needs_topk}
        self._step = 0

    @property
    def needs_topk(self) -> int:  # type: ignore[override]
        return 0 if self._resting or self._retrieval.spared else self._retrieval.needs_topk

    @property
    def _resting(self) -> bool:
        return self._accepted < _FUTILE and self._step % _REST != 0

    def propose(self, state: RequestState, budget: int) -> DraftTree:
        self._step += 1
        self._retrieval.enough = _COPYING if self._copied > _COPYING else math.inf
        return EMPTY if self._resting else super().propose(state, budget)

    def observe(self, state: RequestState, tree: DraftTree, verdict: Verdict, top: TopSuccessors | None) -> None:
        super().observe(state, tree, verdict, top)
        self._accepted += _SLOW * (len(verdict.path) - self._accepted)
        copied = sum(tree.sources[node] not in self._learners for node in verdict.path)
        before = min(self._copied, 2 * _COPYING)  # a step or two without copies are enough to know better
        self._copied = before + _FAST * (copied - before)

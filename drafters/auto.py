"""The default: guess where guessing pays, never where it does not."""

from __future__ import annotations

from drafters.base import RequestState, TopSuccessors
from drafters.cascade import Together
from drafters.goodput import Goodput, MachineProfile
from drafters.tree import EMPTY, DraftTree
from drafters.verify import Verdict

_FUTILE = 0.05  # accepted tokens a step below which guessing rests
_COPYING = 4.0  # accepted tokens a step from which on the target's successors are not asked for
_SLOW, _FAST = 0.1, 0.5  # weights of the newest step in the running means that these two are held to
_REST = 8  # of a resting drafter's steps, one is tried


class Auto(Goodput):
    """The drafter `auto`: all free sources fused, cut by goodput to what pays at this batch and context.

    Even a guess that is not verified costs a little (look-ups, the target's best successors). Where nothing has
    been accepted for a while it is spared in most steps, until a try succeeds; while copying goes well, only the
    successors are.
    """

    name = "auto"

    def __init__(self, retrieval: Together, profile: MachineProfile) -> None:
        super().__init__(retrieval, profile)
        self._accepted = 1.0
        self._lately = 1.0
        self._step = 0

    @property
    def needs_topk(self) -> int:  # type: ignore[override]
        spared = self._resting or self._lately > _COPYING
        return 0 if spared else self._inner.needs_topk

    @property
    def _resting(self) -> bool:
        return self._accepted < _FUTILE and self._step % _REST != 0

    def propose(self, state: RequestState, budget: int) -> DraftTree:
        self._step += 1
        return EMPTY if self._resting else super().propose(state, budget)

    def observe(self, state: RequestState, tree: DraftTree, verdict: Verdict, top: TopSuccessors | None) -> None:
        super().observe(state, tree, verdict, top)
        self._accepted += _SLOW * (len(verdict.path) - self._accepted)
        self._lately += _FAST * (len(verdict.path) - self._lately)

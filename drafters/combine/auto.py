"""The default: guess where guessing pays, never where it does not."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import compress

from drafters.base import RequestState, TopSuccessors
from drafters.combine.fusion import Fusion
from drafters.combine.goodput import Goodput
from drafters.combine.together import Together
from drafters.machine_profile import MachineProfile
from drafters.tree import DraftTree
from drafters.verify import Verdict

_FUTILE = 0.08  # accepted tokens a step below which guessing rests
_DOUBT = 1.5 * _FUTILE  # a request starts with at least that, hence with a try or two; up to it they are small ones
_COPYING = 4.0  # copied tokens promised by a tree above which the target's successors are left alone …
_KEPT = 0.5  # … where more than this share of such promises was kept lately
_SLOW, _FAST = 0.2, 0.5  # weights of the newest step in a request's running means, of tokens and of that share
_TRAFFIC = 0.1  # the same for the running means over all of an owner's requests
_REST, _LONGEST_REST = 4, 16  # steps


@dataclass
class AcceptancePrior:
    """What guessing brought lately, over all requests of an owner: what a new request starts from.

    accepted  tokens a step
    kept      of what trees promised that copied much, the share that was accepted
    """

    accepted: float = 1.0
    kept: float = 1.0


class Auto(Goodput):
    """The drafter `auto`: all free sources fused, cut by goodput to what pays at this batch and context; where there is
    a trained drafter, these and it (`fused`).

    Even a guess that is not verified costs a little (look-ups, the target's best successors). Where nothing has
    been accepted for a while it is spared for four steps, then eight, then sixteen; a try in between verifies one
    token, until one succeeds. Where copies promise much, and such promises were kept, only the successors are spared.
    """

    name = "auto"

    def __init__(
        self, retrieval: Together, profile: MachineProfile, prior: AcceptancePrior, fused: Fusion | None = None
    ) -> None:
        super().__init__(retrieval if fused is None else fused, profile)
        self._retrieval = retrieval
        self._prior = prior
        self._accepted = max(prior.accepted, _DOUBT)
        self._kept = prior.kept
        self._learners = {source.name for source in retrieval.sources if source.needs_topk}

    @property
    def _doubted(self) -> bool:
        return self._accepted <= _DOUBT

    def propose(self, state: RequestState, budget: int) -> DraftTree:
        trusted = self._kept > _KEPT
        self._retrieval.enough = _COPYING if trusted else math.inf
        tree = super().propose(state, 1 if self._doubted else budget)
        if self._doubted or self._retrieval.spared:
            self.needs_topk = 0
        return tree

    def observe(self, state: RequestState, tree: DraftTree, verdict: Verdict, top: TopSuccessors | None) -> None:
        super().observe(state, tree, verdict, top)
        accepted = len(verdict.path)
        self._accepted += _SLOW * (accepted - self._accepted)
        self._prior.accepted += _TRAFFIC * (accepted - self._prior.accepted)
        self.rest = min(max(_REST, 2 * self.rest), _LONGEST_REST) if self._accepted < _FUTILE else 0
        self._prior.accepted *= (1 - _TRAFFIC) ** self.rest  # for nothing is accepted in these
        copied = [source not in self._learners for source in tree.sources]
        promised = sum(compress(tree.scores.tolist(), copied))
        if promised > _COPYING:
            kept = min(1.0, sum(copied[node] for node in verdict.path) / promised)
            self._kept += _FAST * (kept - self._kept)
            self._prior.kept += _TRAFFIC * (kept - self._prior.kept)

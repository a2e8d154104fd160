"""The default: guess where guessing pays, never where it does not."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import compress

from drafters.base import RequestState, TopSuccessors
from drafters.combine.fusion import Fusion
from drafters.combine.goodput import Goodput
from drafters.combine.together import Together
from drafters.machine_profile import MachineProfile
from drafters.models.trained import Trained
from drafters.tree import DraftTree
from drafters.verify import Verdict

_UNSEEN = 2.0  # times what is timed here: the engine looks for the target's best successors besides
_DOUBT = 1.5  # times what is futile: a request starts with at least that, hence with a try or two; up to it, small ones
_COPYING = 4.0  # copied tokens promised by a tree above which the target's successors are left alone …
_KEPT = 0.5  # … where more than this share of such promises was kept lately
_SLOW = 0.2  # most weight of the newest step in a request's running mean of accepted tokens
_FAST = 0.5  # the same of that share
_TRAFFIC = 0.1  # the same for the running means over all of an owner's requests
_REST, _LONGEST_REST = 4, 16  # steps
_LATE = 3.0  # times the usual seconds, above which a step's guessing was held up by something else


@dataclass
class AcceptancePrior:
    """What guessing brought lately, over all requests of an owner: what a new request starts from.

    accepted  tokens a step
    kept      of what trees promised that copied much, the share that was accepted
    seconds   that guessing and learning take a step
    """

    accepted: float = 1.0
    kept: float = 1.0
    seconds: float = 1e-4


class Auto(Goodput):
    """The drafter `auto`: all free sources fused, cut by goodput to what pays at this batch and context; where there is
    a trained drafter, these and it (`fused`).

    Even a guess that is not verified costs a little (look-ups, the target's best successors): much beside a step of a
    small model, next to nothing beside one of a large. Where so little is accepted that guessing takes longer than it
    saves, it is spared for four steps, then eight, then sixteen; a try in between verifies one token, until one
    succeeds. Where copies promise much, and such promises were kept, only the successors are spared.
    """

    name = "auto"

    def __init__(
        self,
        retrieval: Together,
        profile: MachineProfile,
        prior: AcceptancePrior,
        fused: Fusion | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        super().__init__(retrieval if fused is None else fused, profile)
        self._retrieval = retrieval
        self._prior = prior
        self._clock = clock
        self._spent = 0.0  # seconds of this step's guessing
        self._futile = 0.0  # accepted tokens a step that guessing costs
        self._accepted = prior.accepted
        self._kept = prior.kept
        self._learners = {source.name for source in retrieval.sources if source.needs_topk}  # who copies nothing
        if fused is not None and isinstance(fused.model, Trained):
            self._learners.add(fused.model.source)

    @property
    def _doubted(self) -> bool:
        return self._accepted <= _DOUBT * self._futile

    def start(self, state: RequestState) -> None:
        super().start(state)
        self._weigh(state)
        self._accepted = max(self._accepted, _DOUBT * self._futile)

    def propose(self, state: RequestState, budget: int) -> DraftTree:
        began = self._clock()
        trusted = self._kept > _KEPT
        self._retrieval.enough = _COPYING if trusted else math.inf
        tree = super().propose(state, 1 if self._doubted else budget)
        if self._doubted or self._retrieval.spared:
            self.needs_topk = 0
        self._spent = self._clock() - began
        return tree

    def observe(self, state: RequestState, tree: DraftTree, verdict: Verdict, top: TopSuccessors | None) -> None:
        began = self._clock()
        super().observe(state, tree, verdict, top)
        accepted = len(verdict.path)
        # over as many steps as it takes to see whether more is accepted than what is futile
        self._accepted += min(_SLOW, 2.5 * self._futile) * (accepted - self._accepted)
        self._prior.accepted += _TRAFFIC * (accepted - self._prior.accepted)
        seconds = self._spent + self._clock() - began
        self._prior.seconds += _TRAFFIC * (min(seconds, _LATE * self._prior.seconds) - self._prior.seconds)
        self._weigh(state)
        self.rest = min(max(_REST, 2 * self.rest), _LONGEST_REST) if self._accepted < self._futile else 0
        self._prior.accepted *= (1 - _TRAFFIC) ** self.rest  # for nothing is accepted in these
        copied = [source not in self._learners for source in tree.sources]
        promised = sum(compress(tree.scores.tolist(), copied))
        if promised > _COPYING:
            kept = min(1.0, sum(copied[node] for node in verdict.path) / promised)
            self._kept += _FAST * (kept - self._kept)
            self._prior.kept += _TRAFFIC * (kept - self._prior.kept)

    def _weigh(self, state: RequestState) -> None:
        """How many tokens a step guessing must bring to pay; none while nothing is known of the machine."""
        step = self._profile.seconds([1], [len(state.tokens)]) if self._profile.ready else math.inf
        self._futile = _UNSEEN * self._prior.seconds / step if step > 0 else 0.0

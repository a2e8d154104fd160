"""What every drafter of a request is wrapped in: limits, calibration, statistics, and a fall that hurts
nobody."""

from __future__ import annotations

import logging
import time

from torch import Tensor

from drafters.base import Drafter, RequestState, TopSuccessors
from drafters.combine.calibration import Calibration
from drafters.errors import DrafterError
from drafters.stats import DraftingStats
from drafters.tree import EMPTY, DraftTree
from drafters.verify import Verdict

log = logging.getLogger(__name__)


class TrackedDrafter:
    """A drafter for one request, as the engine uses it.

    An exception in the inner drafter switches it off for this request: it is logged and counted, and the rest
    is plain decoding, so the answer is the same. Only a lossy drafter passes it on, for without it the
    declared distribution cannot be sampled. One that says after a step how long it will `rest`, or that is not
    `ready`, is not asked meanwhile, and learns nothing of these steps.

    lossy          the target's logits must go through `adjust` before `choose`
    judges         `verify` wants logits: the drafter has a rule of its own in place of the keyed walk
    stats          of this request
    """

    def __init__(self, inner: Drafter, calibration: Calibration, vocab_size: int, budget: int) -> None:
        self._inner: Drafter | None = inner
        self._calibration = calibration
        self._vocab_size = vocab_size
        self._budget = budget
        self.name = inner.name
        self.lossy = bool(getattr(inner, "lossy", False))
        self.judges = hasattr(inner, "accept")
        self._rest = 0
        self._resting = False
        self.stats = DraftingStats()

    @property
    def needs_topk(self) -> int:
        return 0 if self._inner is None or self._resting else self._inner.needs_topk

    @property
    def ready(self) -> bool:
        """Whether it can be asked; one that is switched off is."""
        return self._inner is None or self._inner.ready

    def start(self, state: RequestState) -> None:
        if self._inner is None:
            return
        began = time.perf_counter()
        try:
            self._inner.start(state)
        except Exception as error:
            self._fail("start", state, error)
        finally:
            self.stats.starting_seconds += time.perf_counter() - began

    def propose(self, state: RequestState, budget: int) -> DraftTree:
        """At most min(budget, the drafter's own limit) nodes; the empty tree after a failure."""
        budget = min(budget, self._budget)
        if self._inner is None or (budget < 1 and not self.lossy):
            return EMPTY
        self._resting = self._rest > 0 or not self.ready
        if self._resting:
            self._rest = max(0, self._rest - 1)
            return EMPTY
        began = time.perf_counter()
        try:
            tree = self._inner.propose(state, budget)
            tree.validate(self._vocab_size)
            # a tree that brings its own q must stay as it was drawn
            return (tree if tree.q is not None else tree.ended_by(state.stops)).trim(budget)
        except Exception as error:
            self._fail("propose", state, error)
            return EMPTY
        finally:
            self.stats.drafting_seconds += time.perf_counter() - began

    def adjust(self, state: RequestState, tree: DraftTree, logits: Tensor) -> Tensor:
        """The logits [n + 1, V] of the distribution that a lossy drafter declares, for the rows of `tree`."""
        if not self.lossy or self._inner is None:
            return logits
        return self._inner.adjust(state, tree, logits)  # type: ignore[attr-defined]

    def verify(self, state: RequestState, tree: DraftTree, logits: Tensor, keyed: Verdict) -> Verdict:
        """The verdict on `tree`: that of the keyed walk, or by the drafter's own rule (`multi_round`).

        logits [n + 1, V] are the target's, unwarped; they are only read where the drafter has a rule of its
        own.
        """
        accept = getattr(self._inner, "accept", None)
        return keyed if accept is None else accept(state, tree, logits)

    def observe(self, state: RequestState, tree: DraftTree, verdict: Verdict, top: TopSuccessors | None) -> None:
        began = time.perf_counter()
        self.stats.count(tree, verdict)
        if len(tree):
            self._calibration.observe(tree, verdict)
        if self._inner is not None and not self._resting:
            try:
                self._inner.observe(state, tree, verdict, top)
                self._rest = getattr(self._inner, "rest", 0)
            except Exception as error:
                self._fail("observe", state, error)
        self.stats.drafting_seconds += time.perf_counter() - began

    def finish(self, state: RequestState) -> None:
        if self._inner is None:
            return
        try:
            self._inner.finish(state)
        except Exception as error:
            self._fail("finish", state, error)

    def _fail(self, stage: str, state: RequestState, error: Exception) -> None:
        inner, self._inner = self._inner, None
        self.stats.failures += 1
        log.exception("drafter %s failed in %s of request %s", self.name, stage, state.request_id)
        if inner is not None and stage != "finish":
            try:
                inner.finish(state)  # gives back its session's pages
            except Exception:
                log.exception("drafter %s failed to finish after that", self.name)
        if self.lossy and stage != "finish":
            raise DrafterError(
                f"drafter {self.name} samples a mixed distribution and failed in {stage}: {error}; "
                "send the request again without target_mix"
            ) from error

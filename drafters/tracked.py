"""The border between the engine and a drafter: limits, calibration, statistics, and a fall that hurts nobody."""

from __future__ import annotations

import logging
import time

from torch import Tensor

from drafters.base import Drafter, RequestState, TopSuccessors
from drafters.calibration import Calibration
from drafters.errors import DrafterError
from drafters.stats import DraftingStats
from drafters.tree import EMPTY, DraftTree
from drafters.verify import Verdict

log = logging.getLogger(__name__)


class TrackedDrafter:
    """A drafter for one request, as the engine uses it.

    What is true of every drafter is done here and nowhere else. A proposed tree is validated, cut below tokens that end
    the output, and trimmed to the budget and to what the drafter finds worth verifying (`Drafter.worth`).

    An exception in the drafter switches it off for this request: it is logged and counted, and the rest is plain
    decoding, so the answer is the same. Only a lossy drafter passes it on, for without it the declared distribution
    cannot be sampled. One that says after a step how long it will `rest` is not asked meanwhile, and learns nothing of
    these steps.
    """

    def __init__(self, inner: Drafter, calibration: Calibration, vocab_size: int, budget: int) -> None:
        self._inner: Drafter | None = inner
        self._calibration = calibration
        self._vocab_size = vocab_size
        self._budget = budget
        self.name = inner.name
        self.lossy = inner.lossy
        self._rest = 0
        self._room = 0  # rows of the step, tree and appended
        self._resting = False
        self.stats = DraftingStats()

    @property
    def needs_topk(self) -> int:
        return 0 if self._inner is None or self._resting else self._inner.needs_topk

    @property
    def layers(self) -> tuple[int, ...]:
        return () if self._inner is None else self._inner.layers

    @property
    def window(self) -> int:
        return 0 if self._inner is None else self._inner.window

    @property
    def ready(self) -> bool:
        """As `Drafter.ready`; one that is switched off reads nothing."""
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

    def read(self, state: RequestState, start: int, states: Tensor) -> None:
        if self._inner is None:
            return
        began = time.perf_counter()
        try:
            self._inner.read(start, states)
        except Exception as error:
            self._fail("read", state, error)
        finally:
            self.stats.drafting_seconds += time.perf_counter() - began

    def propose(self, state: RequestState, budget: int) -> DraftTree:
        """At most min(budget, the drafter's own limit) nodes; the empty tree after a failure."""
        self._room = budget = min(budget, self._budget)
        if self._inner is None or (budget < 1 and not self.lossy):
            return EMPTY
        self._resting = self._rest > 0
        if self._resting:
            self._rest -= 1
            return EMPTY
        began = time.perf_counter()
        try:
            budget = max(0, budget - self._inner.appends)
            tree = self._inner.propose(state, budget) if budget or self.lossy else EMPTY
            tree.validate(self._vocab_size)
            if not self._inner.judges:
                tree = tree.ended_by(state.stops)
            return tree.trim(min(budget, self._inner.worth(state, tree)))
        except Exception as error:
            self._fail("propose", state, error)
            return EMPTY
        finally:
            self.stats.drafting_seconds += time.perf_counter() - began

    def append(self, state: RequestState, tree: DraftTree) -> DraftTree:
        """As `Drafter.append`, below what `propose` gave; nothing where it was not asked."""
        if self._inner is None or not self._inner.appends or self._resting:
            return EMPTY
        began = time.perf_counter()
        try:
            return self._inner.append(state, tree, self._room - len(tree))
        except Exception as error:
            self._fail("append", state, error)
            return EMPTY
        finally:
            self.stats.drafting_seconds += time.perf_counter() - began

    def adjust(self, state: RequestState, tree: DraftTree, logits: Tensor) -> Tensor:
        """As `Drafter.adjust`; the logits themselves, but for a lossy drafter."""
        if not self.lossy or self._inner is None:
            return logits
        try:
            return self._inner.adjust(state, tree, logits)
        except Exception as error:
            self._fail("adjust", state, error)
            return logits

    def verify(
        self, state: RequestState, tree: DraftTree, logits: Tensor, keyed: Verdict, states: Tensor | None = None
    ) -> Verdict:
        """As `Drafter.verify`, after a `look` at the states behind the tree; `keyed` after a failure, which is exact
        for any tree."""
        if self._inner is None:
            return keyed
        try:
            if self._inner.looks and states is not None:
                self._inner.look(tree, states)
            return self._inner.verify(state, tree, logits, keyed)
        except Exception as error:
            self._fail("verify", state, error)
            return keyed

    def observe(self, state: RequestState, tree: DraftTree, verdict: Verdict, top: TopSuccessors | None) -> None:
        began = time.perf_counter()
        self.stats.count(tree, verdict)
        if len(tree):
            self._calibration.observe(tree, verdict)
        if self._inner is not None and not self._resting:
            try:
                self._inner.observe(state, tree, verdict, top)
                self._rest = self._inner.rest
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
                f"drafter {self.name} samples a distribution of its own and failed in {stage}: {error}; "
                "send the request again with a lossless drafter"
            ) from error

"""RASD (arXiv 2503.03434): retrieval trees, pruned by the draft model, fused with its own tree.

A retrieval branch stays if its first token is among the draft model's best; the trees are merged by
longest-prefix matching and trimmed by path scores that are calibrated per source online. Retrieval is all but
free, the draft model is not: it is asked only in rounds where it is expected to pay by the measured times.
"""

from __future__ import annotations

import time

import numpy as np

from drafters.base import RequestState, TopSuccessors
from drafters.cascade import Together
from drafters.draft_model import ModelDrafter
from drafters.goodput import MachineProfile, best_budget
from drafters.tree import EMPTY, DraftTree, fuse
from drafters.verify import Verdict

_WEIGHT = 0.2  # of the newest observation in the running means
_RETRY = 32  # rounds after which a draft model that did not pay is asked again


class Fusion:
    """The drafter `fusion`; one request."""

    name = "fusion"

    def __init__(
        self,
        retrieval: Together,
        model: ModelDrafter | None,
        profile: MachineProfile,
        *,
        prune: int = 10,
        always: bool = False,
    ) -> None:
        self._retrieval = retrieval
        self._model = model
        self._profile = profile
        self._prune = prune
        self._always = always
        self._gain: float | None = None  # tokens that the model's tree added, running mean
        self._cost: float | None = None  # seconds that it took, running mean
        self._idle = 0
        self.needs_topk = retrieval.needs_topk

    def start(self, state: RequestState) -> None:
        self._retrieval.start(state)
        if self._model is not None:
            self._model.start(state)

    def propose(self, state: RequestState, budget: int) -> DraftTree:
        retrieved = self._retrieval.propose(state, budget)
        if self._model is None or not self._asks(state, retrieved):
            return retrieved
        began = time.perf_counter()
        drafted = self._model.propose(state, budget)
        self._cost = _mean(self._cost, time.perf_counter() - began)
        kept = self._pruned(retrieved)
        tree = fuse([kept, drafted]).trim(budget)
        self._gain = _mean(self._gain, max(0.0, float(tree.scores.sum() - retrieved.scores.sum())))
        return tree

    def observe(self, state: RequestState, tree: DraftTree, verdict: Verdict, top: TopSuccessors | None) -> None:
        self._retrieval.observe(state, tree, verdict, top)
        if self._model is not None:
            self._model.observe(state, tree, verdict, top)

    def finish(self, state: RequestState) -> None:
        self._retrieval.finish(state)
        if self._model is not None:
            self._model.finish(state)

    def _asks(self, state: RequestState, retrieved: DraftTree) -> bool:
        """Whether the draft model raises the expected tokens per second above retrieval alone."""
        if self._always or self._gain is None or self._cost is None or not self._profile.ready:
            return True
        times = self._profile.step_times(state.batch_size, len(state.tokens), max(len(retrieved), 8))
        nodes, alone = best_budget(np.sort(retrieved.scores)[::-1], times)
        expected = 1.0 + float(np.sort(retrieved.scores)[::-1][:nodes].sum())
        # what retrieval is sure of, the model cannot add
        added = self._gain * (1.0 - min(1.0, float(retrieved.scores.max(initial=0.0))))
        step = times[max(nodes, min(8, len(times) - 1))]
        pays = (expected + added) / (step + self._cost) > alone
        self._idle = 0 if pays else self._idle + 1
        if self._idle >= _RETRY:
            self._idle = 0
            return True
        return pays

    def _pruned(self, retrieved: DraftTree) -> DraftTree:
        """Without the branches whose first token is not among the draft model's best `prune`."""
        root = self._model.root if self._model is not None else None
        if root is None or not len(retrieved):
            return retrieved
        allowed = set(root.ids[: self._prune].tolist())
        keep = np.zeros(len(retrieved), dtype=bool)
        for node, (token, parent) in enumerate(zip(retrieved.tokens.tolist(), retrieved.parents.tolist(), strict=True)):
            keep[node] = token in allowed if parent < 0 else keep[parent]
        return retrieved.select(np.flatnonzero(keep)) if keep.any() else EMPTY


def _mean(old: float | None, new: float) -> float:
    return new if old is None else (1 - _WEIGHT) * old + _WEIGHT * new

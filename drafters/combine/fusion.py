"""RASD (arXiv 2503.03434): retrieval trees, pruned by the draft model, fused with its own tree.

A retrieval branch stays if its first token is among the draft model's best; the trees are merged by
longest-prefix matching and trimmed by path scores that are calibrated per source online. Retrieval is all but
free, the draft model is not: it is asked only in rounds where it is expected to pay by the measured times.
"""

from __future__ import annotations

import time

import numpy as np
from torch import Tensor

from drafters.base import Drafter, RequestState, TopSuccessors
from drafters.combine.goodput import best_budget
from drafters.combine.together import Together
from drafters.machine_profile import MachineProfile
from drafters.models.draft_model import ModelDrafter
from drafters.models.trained import Trained
from drafters.options import FusionOptions
from drafters.tree import EMPTY, DraftTree, fuse
from drafters.verify import Verdict

_WEIGHT = 0.2  # of the newest observation in the running means
_RETRY = 32  # rounds after which a draft model that did not pay is asked again
_TRIAL = 8  # rounds in which retrieval shows what it can do before the draft model is started
_GAIN = 1.5  # tokens that a draft model is trusted to add before it was asked
_FORWARDS = 4  # draft forwards that it is trusted to take for them


class Fusion(Drafter):
    """The drafter `fusion`; one request.

    The draft model is started (its prompt prefilled) in the first round that asks it; an answer that retrieval
    drafts well never pays for it. With `always` it is started at once and asked in every round, as in the paper.
    """

    name = "fusion"

    def __init__(
        self,
        retrieval: Together,
        model: ModelDrafter | Trained | None,
        profile: MachineProfile,
        options: FusionOptions,
    ) -> None:
        self._retrieval = retrieval
        self.model = model
        self._profile = profile
        self._prune = options.prune
        self._always = options.always
        self.needs_topk = retrieval.needs_topk
        self._started = False
        self._rounds = 0
        self._gain = _GAIN  # tokens that the model's tree adds, running mean
        self._cost: float | None = None  # seconds that it takes, running mean
        self._idle = 0
        if model is not None:
            self.layers, self.window = model.layers, model.window
            self.looks, self.appends = model.looks, model.appends

    def read(self, start: int, states: Tensor) -> None:
        if self.model is not None:
            self.model.read(start, states)

    def start(self, state: RequestState) -> None:
        self._retrieval.start(state)
        if self._always:
            self._start_model(state)

    def propose(self, state: RequestState, budget: int) -> DraftTree:
        retrieved = self._retrieval.propose(state, budget)
        if self.model is None or not self._asks(self.model, state, retrieved):
            return retrieved
        self._start_model(state)
        if not self.model.ready:
            return retrieved
        began = time.perf_counter()
        drafted = self.model.propose(state, budget)
        seconds = time.perf_counter() - began
        self._cost = seconds if self._cost is None else _mean(self._cost, seconds)
        tree = fuse([self._pruned(retrieved), drafted]).trim(budget)
        self._gain = _mean(self._gain, max(0.0, float(tree.scores.sum() - retrieved.scores.sum())))
        return tree

    def append(self, state: RequestState, tree: DraftTree, room: int) -> DraftTree:
        return self.model.append(state, tree, room) if self.model is not None and self._started else EMPTY

    def look(self, tree: DraftTree, states: Tensor) -> None:
        if self.model is not None:
            self.model.look(tree, states)

    def observe(self, state: RequestState, tree: DraftTree, verdict: Verdict, top: TopSuccessors | None) -> None:
        self._rounds += 1
        self._retrieval.observe(state, tree, verdict, top)
        if self.model is not None and self._started:
            self.model.observe(state, tree, verdict, top)

    def finish(self, state: RequestState) -> None:
        self._retrieval.finish(state)
        if self.model is not None and self._started:
            self.model.finish(state)

    def _start_model(self, state: RequestState) -> None:
        if self.model is not None and not self._started:
            self._started = True
            self.model.start(state)

    def _asks(self, model: ModelDrafter | Trained, state: RequestState, retrieved: DraftTree) -> bool:
        """Whether the draft model raises the expected tokens per second above retrieval alone."""
        if self._always:
            return True
        if not self._profile.ready:
            return False
        if isinstance(model, Trained):
            if not self._started:
                return True  # it has nothing to read first: its cost is known after one round
        elif not self._started and self._rounds < _TRIAL:
            return False
        context = len(state.tokens)
        times = self._profile.step_times(state.batch_size, context, max(len(retrieved), 8))
        scores = np.sort(retrieved.scores)[::-1]
        nodes, alone = best_budget(scores, times)
        expected = 1.0 + float(scores[:nodes].sum())
        # where retrieval is sure of the next token, the model adds little
        added = self._gain * (1.0 - min(1.0, float(retrieved.scores.max(initial=0.0))))
        cost = self._cost
        if cost is None:
            read = len(model.prompt(state))
            cost = _FORWARDS * self._profile.seconds([1], [read])
            left = state.max_tokens - (context - state.prompt_length)
            # the prefill, priced by the rows' marginal time, spread over the tokens still to come
            cost += self._profile.seconds([read], [0]) * (expected + added) / max(left, 1)
        pays = (expected + added) / (times[max(nodes, 8)] + cost) > alone
        self._idle = 0 if pays else self._idle + 1
        if self._started and self._idle >= _RETRY:
            self._idle = 0
            return True
        return pays

    def _pruned(self, retrieved: DraftTree) -> DraftTree:
        """Without the branches whose first token is not among the draft model's best `prune`; all of them where it is a
        trained drafter, which knows too few tokens to judge copies."""
        root = self.model.root if isinstance(self.model, ModelDrafter) else None
        if root is None or not len(retrieved):
            return retrieved
        allowed = set(root.ids[: self._prune].tolist())
        keep = np.zeros(len(retrieved), dtype=bool)
        for node, (token, parent) in enumerate(zip(retrieved.tokens.tolist(), retrieved.parents.tolist(), strict=True)):
            keep[node] = token in allowed if parent < 0 else keep[parent]
        return retrieved.select(np.flatnonzero(keep)) if keep.any() else EMPTY


def _mean(old: float, new: float) -> float:
    return (1 - _WEIGHT) * old + _WEIGHT * new

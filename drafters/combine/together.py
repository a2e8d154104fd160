"""Several cheap sources as one drafter."""

from __future__ import annotations

import math
from collections.abc import Sequence

from drafters.base import RequestState, SourceDrafter, TopSuccessors
from drafters.tree import EMPTY, DraftTree, fuse
from drafters.verify import Verdict


class Together(SourceDrafter):
    """Several cheap sources as one: their trees fused, the best nodes kept.

    enough  accepted tokens promised by the others above which sources that live on the target's successors are spared
    spared  whether the last tree was grown without them
    """

    name = "together"

    def __init__(self, sources: Sequence[SourceDrafter]) -> None:
        self.sources = list(sources)
        self.enough = math.inf
        self.spared = False
        self.needs_topk = max((source.needs_topk for source in sources), default=0)

    def start(self, state: RequestState) -> None:
        for source in self.sources:
            source.start(state)

    def grow(self, state: RequestState, extra: Sequence[int], budget: int) -> DraftTree:
        trees = [source.grow(state, extra, budget) for source in self.sources if not source.needs_topk]
        self.spared = sum(tree.scores.sum() for tree in trees) > self.enough
        if not self.spared:
            trees += [source.grow(state, extra, budget) for source in self.sources if source.needs_topk]
        trees = [tree for tree in trees if len(tree)]
        if len(trees) < 2:
            return trees[0] if trees else EMPTY
        return fuse(trees).trim(budget)

    def observe(self, state: RequestState, tree: DraftTree, verdict: Verdict, top: TopSuccessors | None) -> None:
        for source in self.sources:
            source.observe(state, tree, verdict, top)

    def finish(self, state: RequestState) -> None:
        for source in self.sources:
            source.finish(state)

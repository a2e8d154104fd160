"""A cheap drafter speculates for the RAG drafter, which speculates for the target.

RAPID's ceiling is the cost of its draft steps (0.30 of a target step each). Here a cheap source guesses the
draft model's own next tokens; they ride in its forward, and where it agrees with them a draft forward settles
several nodes.
"""

from __future__ import annotations

from drafters.base import RequestState, SourceDrafter, TopSuccessors
from drafters.models.best_first import BestFirst
from drafters.models.pacing import Pace
from drafters.models.rag import Rag
from drafters.options import CascadeOptions
from drafters.protocols import DraftModel
from drafters.tree import DraftTree
from drafters.verify import Verdict


class Cascade(Rag):
    """The drafter `cascade`: its builder's helper is `helper`, whose life it shares."""

    name = "cascade"

    def __init__(
        self,
        helper: SourceDrafter,
        model: DraftModel,
        builder: BestFirst,
        options: CascadeOptions,
        pace: Pace | None = None,
    ) -> None:
        super().__init__(model, builder, options, pace)
        self._helper = helper
        self.needs_topk = helper.needs_topk

    def start(self, state: RequestState) -> None:
        super().start(state)
        self._helper.start(state)

    def observe(self, state: RequestState, tree: DraftTree, verdict: Verdict, top: TopSuccessors | None) -> None:
        super().observe(state, tree, verdict, top)
        self._helper.observe(state, tree, verdict, top)

    def finish(self, state: RequestState) -> None:
        super().finish(state)
        self._helper.finish(state)

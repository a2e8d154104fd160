"""SWIFT (arXiv 2410.06916): the target drafts for itself, some of its layers skipped.

No second model and no second KV: the request's own pages are read by the layers that run. The drafted nodes'
KV is thrown away after the round, for the verification writes the full model's.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from torch import Tensor

from drafters.base import RequestState, TopSuccessors
from drafters.models.best_first import BestFirst
from drafters.models.draft_model import ModelDrafter
from drafters.protocols import SkippableModel, SkipSession
from drafters.research.layer_search import LayerSearch
from drafters.tree import DraftTree
from drafters.verify import Verdict


class _SkippedView:
    """A SkipSession as a DraftSession: the root is its node 0, so all node numbers are shifted by one."""

    def __init__(self, session: SkipSession, search: LayerSearch) -> None:
        self._session = session
        self._search = search
        self._skipped = search.current
        self.length = 0
        self.ready = True

    def advance(self, token_ids: Sequence[int]) -> Tensor:
        """Run the root; the tokens before it have their KV from the verification."""
        self.rollback()
        self._skipped = self._search.current
        return self._session.extend([token_ids[-1]], [-1], self._skipped)

    def extend(self, tokens: Sequence[int], parents: Sequence[int]) -> Tensor:
        return self._session.extend(tokens, [parent + 1 for parent in parents], self._skipped)

    def commit(self, path: Sequence[int]) -> None:
        """Nodes of a model with skipped layers are never kept (`keeps_nodes`): the path is empty."""
        self.rollback()

    def rollback(self) -> None:
        self._session.rollback()

    def close(self) -> None:
        self._session.close()


class SelfSpeculation(ModelDrafter):
    """The drafter `self_speculation`; one request, the search shared by its owner's."""

    name = "self_speculation"
    keeps_nodes = False

    def __init__(self, model: SkippableModel, builder: BestFirst, search: LayerSearch) -> None:
        super().__init__(None, builder)
        self._skippable = model
        self._search = search
        self._began = 0.0

    def start(self, state: RequestState) -> None:
        """Attach to the running request: nothing to prefill."""
        self._session = _SkippedView(self._skippable.attach(state.request_id), self._search)
        self._synced = len(state.tokens) - 1

    def propose(self, state: RequestState, budget: int) -> DraftTree:
        self._began = time.perf_counter()
        return super().propose(state, budget)

    def observe(self, state: RequestState, tree: DraftTree, verdict: Verdict, top: TopSuccessors | None) -> None:
        """Judge the skipped set by the wall clock from the start of drafting to the end of verifying."""
        self._search.observe(len(verdict.tokens), time.perf_counter() - self._began)

"""A smaller or shorter-sighted model drafts: its session follows the request, never re-reading anything."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from torch import Tensor

from drafters.base import Drafter, RequestState, TopSuccessors
from drafters.models.best_first import BestFirst, Candidates
from drafters.models.pacing import Pace
from drafters.protocols import DraftModel, DraftSession
from drafters.tree import EMPTY, DraftTree
from drafters.verify import Verdict


class ModelDrafter(Drafter):
    """The drafter `draft_model`: another checkpoint of the same vocabulary, reading the whole context.

    `keeps_nodes` says whether the session's nodes keep their KV when they are accepted; where they do not
    (self-speculation), every round starts from the root again. `pace` shortens drafts and passes rounds over; without
    it every round drafts as far as the builder goes.
    """

    name = "draft_model"
    keeps_nodes = True

    def __init__(self, model: DraftModel | None, builder: BestFirst, pace: Pace | None = None) -> None:
        self._model = model
        self._builder = builder
        self._pace = pace
        self._seconds: float | None = None  # that the last round's draft took; None where it was passed over
        self._session: DraftSession | None = None
        self._unread: list[int] = []  # tokens of the draft prompt without KV: its last, until the first round
        self._synced = 0  # state.tokens[:_synced] are in the session or in _unread
        self._at = -1  # the session's node that is the root; -1 = its last committed token
        self._path: list[int] = []  # the session's nodes from its last committed token to _at
        self._row: Tensor | None = None
        self.root: Candidates | None = None
        """The draft model's view of the coming token, as of the last `propose`."""

    def prompt(self, state: RequestState) -> Sequence[int]:
        """What the draft model reads in place of the prompt; not empty."""
        return state.tokens[: state.prompt_length]

    @property
    def ready(self) -> bool:
        return self._session is None or self._session.ready

    def start(self, state: RequestState) -> None:
        """Have the draft prompt read but for its last token, whose logits the first round needs."""
        if self._model is None:
            raise RuntimeError(f"{self.name} has no model to open a session of")
        prompt = self.prompt(state)
        self._session = self._model.open(prompt[:-1])
        self._unread = [prompt[-1]]
        self._synced = state.prompt_length

    def propose(self, state: RequestState, budget: int) -> DraftTree:
        session = self._open_session()
        self._seconds = None
        if self._pace is not None and not self._pace.asks():
            return EMPTY
        began = time.perf_counter()
        root = self._follow(session, state)
        if budget < 1:
            return EMPTY
        tree = self._builder.build(session, root, state, budget, self._at, self._pace.depth if self._pace else None)
        self._seconds = time.perf_counter() - began
        return tree

    def ahead(self, state: RequestState, budget: int, interrupted: Callable[[], bool]) -> None:
        """Draft on below what was proposed, for a next round that finds all of it accepted (`overlap`)."""
        if self.root is not None and self._seconds is not None and budget > 0:
            self._builder.build(self._open_session(), self.root, state, budget, self._at, interrupted=interrupted)

    def observe(self, state: RequestState, tree: DraftTree, verdict: Verdict, top: TopSuccessors | None) -> None:
        """Learn the pace; what was emitted the next round reads from state.tokens."""
        if self._pace is not None and self._seconds is not None:
            self._pace.observe(state, len(tree), len(verdict.path), self._seconds)

    def finish(self, state: RequestState) -> None:
        if self._session is not None:
            self._session.close()
            self._session = None

    def _open_session(self) -> DraftSession:
        if self._session is None:
            raise RuntimeError(f"{self.name}: used before start or after finish")
        return self._session

    def _follow(self, session: DraftSession, state: RequestState) -> Candidates:
        """Bring the session up to the root: keep the nodes that were accepted, run the rest in one forward.

        Where even the root was drafted, nothing is run and nothing is committed: the tree goes on below it.
        """
        pending = self._unread + state.tokens[self._synced :]
        if not pending and self.root is not None:
            return self.root  # asked again after a step that was rolled back
        self._unread, self._synced = [], len(state.tokens)
        found = self._builder.follow(pending, self._at) if self.keeps_nodes else []
        self._path += found
        if len(found) == len(pending) and self._path:
            self._at = self._path[-1]
            self.root = self._builder.known[self._at]
            return self.root
        session.commit(self._path)
        self._path, self._at = [], -1
        self._builder.reset()
        logits = session.advance(pending[len(found) :])[-1:]
        self.root = self._builder.candidates(logits, state, [state.next_position])[0]
        return self.root

    def _root_logits(self, session: DraftSession, state: RequestState) -> Tensor:
        """Bring the session up to the root and always run the root itself; its logits [1, V].

        For drafters that need the distribution there, not only its best tokens.
        """
        pending = self._unread + state.tokens[self._synced :]
        self._unread, self._synced = [], len(state.tokens)
        if not pending and self._row is not None:
            session.rollback()  # asked again after a step that was rolled back
            self._builder.reset()
            return self._row
        path = self._builder.follow(pending[:-1])
        session.commit(path)
        self._builder.reset()
        self._row = session.advance(pending[len(path) :])[-1:]
        return self._row

"""A smaller or shorter-sighted model drafts: its session follows the request, never re-reading anything."""

from __future__ import annotations

from collections.abc import Sequence

from drafters.base import DraftModel, DraftSession, RequestState, TopSuccessors
from drafters.best_first import BestFirst, Candidates, candidates
from drafters.tree import DraftTree
from drafters.verify import Verdict


class ModelDrafter:
    """The drafter `draft_model`: another checkpoint of the same vocabulary, reading the whole context.

    `keeps_nodes` says whether the session's nodes keep their KV when they are accepted; where they do not
    (self-speculation), every round starts from the root again.
    """

    name = "draft_model"
    needs_topk = 0
    keeps_nodes = True

    def __init__(self, model: DraftModel, builder: BestFirst, branching: int) -> None:
        self._model = model
        self._builder = builder
        self._branching = branching
        self._session: DraftSession | None = None
        self._synced = 0  # state.tokens[:_synced] have their KV in the session
        self._root: Candidates | None = None

    def prompt(self, state: RequestState) -> Sequence[int]:
        """What the draft model reads in place of the prompt; not empty."""
        return state.tokens[: state.prompt_length]

    def start(self, state: RequestState) -> None:
        """Prefill the draft prompt but for its last token, which the first round needs the logits of."""
        prompt = self.prompt(state)
        self._synced = state.prompt_length
        if len(prompt) > 1:
            self._session = self._model.open(prompt[:-1])
        if self._session is None:
            self._session = self._model.open(prompt)
        else:
            self._root = self._read(self._session, [prompt[-1]], state, state.prompt_length)

    def propose(self, state: RequestState, budget: int) -> DraftTree:
        session = self._session
        if session is None:
            raise RuntimeError(f"{self.name}: propose before start")
        root = self._follow(session, state)
        return self._builder.build(session, root, state, budget)

    def observe(
        self, state: RequestState, tree: DraftTree, verdict: Verdict, top: TopSuccessors | None
    ) -> None:
        """Nothing: the next round reads what was emitted from state.tokens."""

    def finish(self, state: RequestState) -> None:
        if self._session is not None:
            self._session.close()
            self._session = None

    def _follow(self, session: DraftSession, state: RequestState) -> Candidates:
        """Bring the session up to the root: keep the nodes that were accepted, run the rest in one forward."""
        pending = state.tokens[self._synced :]
        path: list[int] = []
        if self.keeps_nodes:
            node = -1
            for token in pending:
                follow = self._builder.session_children.get((node, token))
                if follow is None:
                    break
                node = follow
                path.append(node)
        if path:
            self._root = self._builder.known[path[-1]]
            session.commit(path)
        elif self._builder.known:
            session.rollback()
        self._builder.reset()
        rest = pending[len(path) :]
        self._synced = len(state.tokens)
        if rest:
            self._root = self._read(session, rest, state, len(state.tokens))
        if self._root is None:
            raise RuntimeError(f"{self.name}: no token to draft from")
        return self._root

    def _read(
        self, session: DraftSession, tokens: Sequence[int], state: RequestState, position: int
    ) -> Candidates:
        logits = session.advance(tokens)[-1:]
        return candidates(logits, state.sampling, [position], self._branching)[0]

"""Models that draft: sessions of their own in the engine's pages (``drafters.protocols.DraftModel``).

A session is a sequence like any other, but its pages are lent: when a request needs a page and none is left, sessions
are closed, the youngest first, before any request is preempted. The drafter that used it then fails at its next call,
is switched off for its request, and the answer goes on without it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from drafters.tree import EMPTY, DraftTree
from service.engine.block_manager import BlockManager, Place
from service.engine.request import Request, SamplingParams
from service.engine.runner.fused_layers import pass_on
from service.engine.runner.model_runner import ModelRunner
from service.engine.step import Slice


class SessionClosed(RuntimeError):
    """The session's pages were needed by a request."""


class DraftPages:
    """The sessions that hold pages of one pool."""

    def __init__(self, blocks: BlockManager) -> None:
        self.blocks = blocks
        self.sessions: list[PagedSession] = []
        self.reclaimed = 0

    def reclaim(self) -> bool:
        """Close the youngest session; False where there is none."""
        if not self.sessions:
            return False
        self.reclaimed += 1
        self.sessions[-1].close()
        return True

    def owners(self) -> list[list[Place]]:
        """The page lists of all sessions, for the integrity check."""
        return [session.pages for session in self.sessions]


class PagedDraftModel:
    """A model over pages, as the drafters see it; ``salt`` keys its prefixes in the cache."""

    def __init__(self, runner: ModelRunner, lent: DraftPages, vocab_size: int, salt: str, chunk: int) -> None:
        self.runner = runner
        self.lent = lent
        self.vocab_size = vocab_size
        self.salt = salt
        self.chunk = chunk

    def open(self, token_ids: Sequence[int]) -> PagedSession:
        """Prefill ``token_ids`` (may be empty), reading what the prefix cache has of them."""
        session = PagedSession(self)
        if token_ids:
            session.prefill(token_ids)
        return session


class PagedSession:
    """One sequence of a draft model (``drafters.protocols.DraftSession``).

    Invariant: ``tokens`` have their KV in ``pages`` at their own order, the nodes of ``tree`` behind them.
    """

    def __init__(self, model: PagedDraftModel) -> None:
        self._model = model
        self._blocks = model.lent.blocks
        self.tokens: list[int] = []
        self.pages: list[Place] = []
        self.tree: DraftTree = EMPTY
        self._published = 0
        self._open = True
        model.lent.sessions.append(self)

    @property
    def length(self) -> int:
        return len(self.tokens)

    def prefill(self, token_ids: Sequence[int]) -> None:
        """Take what the prefix cache has, compute the rest in chunks, publish it."""
        ids = list(token_ids)
        # one token more than there is: the whole of the prompt may come from the cache, for no logits are wanted
        self.pages = self._blocks.match([*ids, 0], self._model.salt).pages
        self.tokens = ids[: len(self.pages) * self._blocks.page_size]
        self._published = len(self.pages)
        while len(self.tokens) < len(ids):
            chunk = ids[len(self.tokens) : len(self.tokens) + self._model.chunk]
            self._run(chunk, samples=False)
        self._published = self._blocks.publish(self.tokens, self.pages, self._published, self._model.salt)

    def advance(self, token_ids: Sequence[int]) -> Tensor:
        """Drop the nodes, append tokens; their logits [len(token_ids), V]."""
        self.rollback()
        return self._run(list(token_ids), samples=True)

    def read(self, token_ids: Sequence[int]) -> None:
        """Drop the nodes, append tokens whose logits nobody wants."""
        self.rollback()
        self._run(list(token_ids), samples=False)

    def truncate(self, length: int) -> None:
        """Drop the nodes, and all tokens but the first ``length``; pages that then hold nothing are free.

        A page of the prefix cache is never written again: it must lie whole within ``length``.
        """
        self._check_open()
        if not self._published * self._blocks.page_size <= length <= self.length:
            raise ValueError(f"a session of {self.length} tokens cannot be cut to {length}")
        self.rollback()
        kept = self._blocks.pages_for(length)
        self._blocks.release(self.pages[kept:])
        del self.pages[kept:], self.tokens[length:]

    def extend(self, tokens: Sequence[int], parents: Sequence[int]) -> Tensor:
        """Add nodes; their logits [len(tokens), V]."""
        self._check_open()
        known = len(self.tree)
        grown = DraftTree.of([*self.tree.tokens, *tokens], [*self.tree.parents, *parents])
        self._hold(self.length + len(grown))
        logits = self._model.runner.run_nodes(self.pages, self.length, grown, known)
        self.tree = grown
        return logits

    def commit(self, path: Sequence[int]) -> None:
        """Keep the nodes ``path``, drop the others."""
        self._check_open()
        self._model.runner.keep_nodes(self.pages, self.length, path)
        self.tokens += [int(self.tree.tokens[node]) for node in path]
        self.rollback()

    def rollback(self) -> None:
        self.tree = EMPTY

    def close(self) -> None:
        if self._open:
            self._open = False
            self._model.lent.sessions.remove(self)
            self._blocks.release(self.pages)
            self.pages = []

    def _run(self, token_ids: list[int], samples: bool) -> Tensor:
        self._check_open()
        self._hold(self.length + len(token_ids))
        holder = Request("draft", [0], SamplingParams())
        holder.pages = self.pages
        part = Slice(holder, self.length, token_ids, samples, all_logits=samples)
        logits = self._model.runner.run([part]).logits
        self.tokens += token_ids
        return logits

    def _hold(self, num_tokens: int) -> None:
        missing = self._blocks.pages_for(num_tokens) - len(self.pages)
        if missing > 0:
            self.pages += self._blocks.allocate(missing)

    def _check_open(self) -> None:
        if not self._open:
            raise SessionClosed("the pages of this draft session were needed by a request")


class SkippingModel:
    """The target with some layers skipped, over a request's own pages (``drafters.protocols.SkippableModel``).

    Nodes are written where the step's own tree will be, so they take no pages and are overwritten by the verification.
    """

    def __init__(self, runner: ModelRunner, requests: dict[str, Request], vocab_size: int) -> None:
        self._runner = runner
        self._requests = requests
        self.vocab_size = vocab_size
        self._layers = _decoder_layers(runner.model)
        self.num_layers = len(self._layers)

    def attach(self, request_id: str) -> SkippingSession:
        """A session over the running request of that id."""
        return SkippingSession(self, self._requests[request_id])

    @contextmanager
    def skipping(self, skipped: frozenset[int]) -> Iterator[ModelRunner]:
        """The runner, with these layers passing on what they get."""
        for i in skipped:
            self._layers[i].forward = pass_on  # type: ignore[method-assign]
        try:
            yield self._runner
        finally:
            for i in skipped:
                del self._layers[i].forward


class SkippingSession:
    """A tree over one request, grown by the skipping target (``drafters.protocols.SkipSession``)."""

    def __init__(self, model: SkippingModel, request: Request) -> None:
        self._model = model
        self._request = request
        self._tree: DraftTree = EMPTY

    def extend(self, tokens: Sequence[int], parents: Sequence[int], skipped: frozenset[int]) -> Tensor:
        """Add nodes; node 0 is the request's pending token; their logits [len(tokens), V]."""
        known = len(self._tree)
        grown = DraftTree.of([*self._tree.tokens, *tokens], [*self._tree.parents, *parents])
        request = self._request
        with self._model.skipping(skipped) as runner:
            logits = runner.run_nodes(request.pages, request.num_computed, grown, known)
        self._tree = grown
        return logits

    def rollback(self) -> None:
        self._tree = EMPTY

    def close(self) -> None:
        self.rollback()


def _decoder_layers(model: Any) -> torch.nn.ModuleList:
    """The decoder's layers: the module list as long as the model has layers."""
    wanted = model.config.get_text_config().num_hidden_layers
    for module in model.modules():
        if isinstance(module, torch.nn.ModuleList) and len(module) == wanted:
            return module
    raise ValueError(f"{type(model).__name__} keeps its layers in no module list of length {wanted}")

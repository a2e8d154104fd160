"""Models that draft: sessions of their own in the engine's pages (``drafters.protocols.DraftModel``).

A session's prompt is read as rows of steps, in chunks (`request.Reading`), and until then its drafter guesses
nothing. From then on the session is a sequence like any other, but its pages are lent: when a request needs a page and
none is left, sessions are closed, the youngest first, before any request is preempted. The drafter that used it then
fails at its next call, is switched off for its request, and the answer goes on without it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from typing import Self

import structlog
from torch import Tensor

from drafters.tree import EMPTY, DraftTree
from service.engine.block_manager import BlockManager, OutOfPages, Place, salt_of
from service.engine.finish import FinishReason
from service.engine.params import SamplingParams
from service.engine.request import Priority, Reading, Request
from service.engine.runner.fused_layers import pass_on
from service.engine.runner.hidden_states import decoder_layers
from service.engine.runner.model_runner import ModelRunner
from service.engine.scheduler import Scheduler
from service.engine.step import Slice

log = structlog.get_logger(__name__)


class SessionClosed(RuntimeError):
    """The session's pages were needed by a request, or its prompt could not be read."""


class DraftPages:
    """The sessions that hold pages of one pool."""

    def __init__(self, blocks: BlockManager) -> None:
        self.blocks = blocks
        self.sessions: list[PagedSession] = []
        self.reclaimed = 0

    def reclaim(self) -> bool:
        """Close the youngest session that holds pages; False where there is none."""
        holding = [session for session in self.sessions if session.pages]
        if not holding:
            return False
        self.reclaimed += 1
        holding[-1].close()
        return True

    def owners(self) -> list[list[Place]]:
        """The page lists of all sessions, for the integrity check."""
        return [session.pages for session in self.sessions]


class PagedDraftModel:
    """A model over pages, as the drafters of one owner see it; ``salt`` keys its prefixes in the cache.

    Prompts are read in the steps of ``scheduler``: the engine's, for the target itself.
    """

    def __init__(self, runner: ModelRunner, lent: DraftPages, scheduler: Scheduler, vocab_size: int, salt: str) -> None:
        self.runner = runner
        self.lent = lent
        self.scheduler = scheduler
        self.vocab_size = vocab_size
        self.salt = salt

    def of(self, owner: str | None) -> Self:
        """The same model for an owner, whose sessions alone find what they have read; None: everybody's do."""
        view = copy(self)
        view.salt = salt_of(self.salt, owner)
        return view

    def open(self, token_ids: Sequence[int]) -> PagedSession:
        """A session that is ready once ``token_ids`` (may be empty) are read. Error: OutOfPages, for too many."""
        session = PagedSession(self)
        if token_ids:
            session.read(token_ids)
        return session


class SeparateDraftModel(PagedDraftModel):
    """Another checkpoint, with a scheduler of its own that runs beside the engine's steps."""

    def read_ahead(self, budget: int) -> None:
        """One forward of at most ``budget`` rows over the prompts that are being read; one that fails ends these."""
        if not self.scheduler.has_work or budget < 1:
            return
        step = self.scheduler.schedule(budget)
        for request, _ in step.failed:
            self.scheduler.finish(request, FinishReason.ERROR)
        if not step:
            return
        try:
            self.runner.run(step.slices)
        except Exception:
            log.exception("a draft model could not read", requests=len(step.slices))
            for part in step.slices:
                self.scheduler.finish(part.request, FinishReason.ERROR)
            return
        self.scheduler.commit(step, {})
        for part in step.slices:
            if part.request.reading is not None and part.request.reading.take(part.request, part.start):
                self.scheduler.finish(part.request, FinishReason.STOP)


class PagedSession:
    """One sequence of a draft model (``drafters.protocols.DraftSession``).

    Invariant, once it is ready: ``tokens`` have their KV in ``pages`` at their own order, the nodes of ``tree`` behind
    them.
    """

    def __init__(self, model: PagedDraftModel) -> None:
        self._model = model
        self._blocks = model.lent.blocks
        self.tokens: list[int] = []
        self.pages: list[Place] = []
        self.tree: DraftTree = EMPTY
        self._reading: Request | None = None
        self._open = True
        model.lent.sessions.append(self)

    @property
    def length(self) -> int:
        return len(self.tokens)

    @property
    def ready(self) -> bool:
        """Whether the prompt is read; or will never be, which the next call then says."""
        return self._reading is None or self._reading.finish_reason is not None

    def read(self, token_ids: Sequence[int]) -> None:
        """Have the first tokens read in the steps to come."""
        if self._blocks.pages_for(len(token_ids)) * self._blocks.num_groups > self._blocks.num_pages:
            raise OutOfPages(f"a draft prompt of {len(token_ids)} tokens is larger than all pages together")
        reading = Reading(on_read=self._take, priority=Priority.DRAFT)
        self._reading = Request("draft", token_ids, SamplingParams(), reading=reading)
        self._reading.salt = self._model.salt
        self._model.scheduler.add(self._reading)

    def _take(self, read: Request) -> None:
        self.tokens, self.pages = read.token_ids, read.pages
        read.pages = []
        self._reading = None

    def advance(self, token_ids: Sequence[int]) -> Tensor:
        """Drop the nodes, append tokens; their logits [len(token_ids), V]."""
        self._check_open()
        self.rollback()
        self._hold(self.length + len(token_ids))
        holder = Request("draft", [0], SamplingParams())
        holder.pages = self.pages
        part = Slice(holder, self.length, list(token_ids), samples=True, all_logits=True)
        logits = self._model.runner.run([part]).logits
        self.tokens += token_ids
        return logits

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
            if self._reading is not None:
                self._model.scheduler.finish(self._reading, FinishReason.ABORT)
            self._blocks.release(self.pages)
            self.pages = []

    def _hold(self, num_tokens: int) -> None:
        missing = self._blocks.pages_for(num_tokens) - len(self.pages)
        if missing > 0:
            self.pages += self._blocks.allocate(missing)

    def _check_open(self) -> None:
        if not self._open:
            raise SessionClosed("the pages of this draft session were needed by a request")
        if self._reading is not None:
            raise SessionClosed("the prompt of this draft session is not read")


class SkippingModel:
    """The target with some layers skipped, over a request's own pages (``drafters.protocols.SkippableModel``).

    Nodes are written where the step's own tree will be, so they take no pages and are overwritten by the verification.
    """

    def __init__(self, runner: ModelRunner, requests: dict[str, Request], vocab_size: int) -> None:
        self._runner = runner
        self._requests = requests
        self.vocab_size = vocab_size
        self._layers = decoder_layers(runner.model)
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
        known, request = len(self._tree), self._request
        self._grow(tokens, parents)
        with self._model.skipping(skipped) as runner:
            return runner.run_nodes(request.pages, request.num_computed, self._tree, known)

    def shallow(self, tokens: Sequence[int], parents: Sequence[int], layers: int) -> Tensor:
        """Add nodes, as ``extend``; what the first layers make of them, [len(tokens), d]."""
        known, request = len(self._tree), self._request
        self._grow(tokens, parents)
        with self._model.skipping(frozenset(range(layers, self._model.num_layers))) as runner:
            return runner.states_of_nodes(request.pages, request.num_computed, self._tree, known, layers)

    def _grow(self, tokens: Sequence[int], parents: Sequence[int]) -> None:
        self._tree = DraftTree.of([*self._tree.tokens, *tokens], [*self._tree.parents, *parents])

    def rollback(self) -> None:
        self._tree = EMPTY

    def close(self) -> None:
        self.rollback()

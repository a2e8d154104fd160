"""The parts of a running service and their order of life: library, engine, answers.

The library opens first, so that documents can be listed and searched while the model still loads.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import structlog

from retrieval.index.token_store import CorpusTokenizer
from retrieval.ingest.jobs import JobQueue
from retrieval.library import VIEWERS, Library
from service.accounts.keys import KeyStore
from service.answering.answer import Answerer
from service.answering.evidence import EvidenceFinder
from service.answering.prompting.encoding import Encoder
from service.answering.prompting.layouts import ChatLayout, PlainLayout, PromptLayout
from service.answering.retention import forget_deleted
from service.conversations.store import ConversationStore
from service.errors import DeviceLost, Exit, FolioError, InvalidRequest, Unavailable, translate
from service.libraries import open_library
from service.models import chat_layout_for, layout_for, load_engine, shown_name
from service.receipts.making import ReceiptMaker
from service.receipts.signing import Signer
from service.settings import EMBEDDED, Settings
from service.tables.filling import TableFiller
from service.tables.store import TableStore
from service.turns import Turns
from service.warming import PassageWarmer
from service.watches.store import WatchStore
from service.watches.watching import Watcher

if TYPE_CHECKING:
    from service.engine.async_engine import AsyncEngine
    from service.engine.engine import Engine
    from service.engine.ticket import Observer

log = structlog.get_logger(__name__)

LAST_WORDS_S = 1.0
"""For the streams in flight to be told before the process ends."""


class State(StrEnum):
    """Where a service is in its life."""

    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    FAILED = "failed"


@dataclass(frozen=True)
class _Parts:
    """What there is once the model is loaded."""

    engine: AsyncEngine
    answerer: Answerer
    chat: ChatLayout | PlainLayout
    receipts: ReceiptMaker


class Runtime:
    """One library, one engine, and what answers with them."""

    def __init__(self, settings: Settings, library: Library | None = None, engine: Engine | None = None) -> None:
        self.settings = settings
        self.model_name = shown_name(settings.model)
        self.failure: FolioError | None = None
        """Why there is no model; whoever waits for `ended` says so to the user."""
        self.observers: list[Observer] = []
        """Called with every output of the engine; to be filled before `start`."""
        self.on_lost: Callable[[DeviceLost], None] = end_process
        """What a service does about a device that only a new process can use again."""
        self.encoding = Turns()
        self.viewing = Turns(VIEWERS)
        self.exporting = Turns()
        """Of owners whose texts are encoded, whose pages are drawn, or whose tables and conversations become files."""
        self.ended = asyncio.Event()
        """Set when loading has ended, well or not."""
        self._library = library
        self._owns_library = library is None
        self._given = engine
        self._parts: _Parts | None = None
        self._keys: KeyStore | None = None
        self._loading: asyncio.Task[None] | None = None
        self._warming: asyncio.Task[None] | None = None
        self._working: list[asyncio.Task[None]] = []
        self._filler: TableFiller | None = None
        self._draining = False

    async def start(self, serving: bool = False) -> None:
        """Open the library; begin to load the model in the background.

        With `serving`, uploads are worked off from here on, and search is warmed up.

        Raises StoreUnavailable and the like when the library cannot be opened.
        """
        if self._library is None:
            self._library = await asyncio.to_thread(open_library, self.settings)
        self._keys = KeyStore(self._library.database, self.settings)
        if serving:
            await asyncio.to_thread(forget_deleted, self._library, self.settings)
            self._library.jobs.start_worker()
            self._warming = asyncio.create_task(asyncio.to_thread(self._warm_up, self._library))
        self._loading = asyncio.create_task(self._load(serving))

    def forget(self, owner: str) -> None:
        """After an owner's delete: remove what was made of the document, and what drafters learned of his texts."""
        forget_deleted(self.library, self.settings)
        if self.loaded is not None:
            self.loaded.forget(owner)

    async def stop(self) -> None:
        """Drain, abort what is left, close everything."""
        await self.drain()
        for task in (self._loading, self._warming):
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        if self.loaded is not None:
            await asyncio.to_thread(self.loaded.stop)
        if self._library is not None and self._owns_library:
            await asyncio.to_thread(self._library.close)

    async def drain(self) -> None:
        """Take nothing more; wait for what is in flight as long as the settings allow."""
        self._draining = True
        for task in self._working:  # what they leave is gone on with at the next start
            task.cancel()
        await asyncio.gather(*self._working, return_exceptions=True)
        if self.loaded is not None and not await self.loaded.drain(self.settings.drain_timeout_s):
            log.warning("aborting requests in flight", requests=self.loaded.in_flight)

    @property
    def state(self) -> State:
        if self._draining:
            return State.DRAINING
        if self.failure is not None:
            return State.FAILED
        return State.READY if self.loaded is not None and self.loaded.ready else State.LOADING

    @property
    def library(self) -> Library:
        if self._library is None:
            raise Unavailable("The service is still starting.")
        return self._library

    @property
    def jobs(self) -> JobQueue:
        return self.library.jobs

    @property
    def keys(self) -> KeyStore | None:
        """None until the library is open."""
        return self._keys

    @property
    def tables(self) -> TableStore:
        return TableStore(lambda: self.library.database)

    @property
    def conversations(self) -> ConversationStore:
        return ConversationStore(lambda: self.library.database)

    @property
    def watches(self) -> WatchStore:
        return WatchStore(lambda: self.library.database)

    def wake(self) -> None:
        """There may be work in the background: a table to fill."""
        if self._filler is not None:
            self._filler.wake()

    @property
    def engine(self) -> AsyncEngine:
        """The door to the model. Raises Unavailable while there is none, as those below do."""
        return self._whole.engine

    @property
    def loaded(self) -> AsyncEngine | None:
        """The engine once there is one; for figures, which may be asked for at any time."""
        return self._parts.engine if self._parts is not None else None

    @property
    def answerer(self) -> Answerer:
        return self._whole.answerer

    @property
    def receipts(self) -> ReceiptMaker:
        """What makes the receipts of answers."""
        return self._whole.receipts

    @property
    def chat(self) -> ChatLayout | PlainLayout:
        """How the model holds a plain conversation."""
        return self._whole.chat

    @property
    def tokenizer(self) -> Any:
        """The model's tokenizer, for decoding only: other threads decode with it too."""
        return self.engine.tokenizer

    @property
    def _whole(self) -> _Parts:
        if self._parts is None:
            raise Unavailable(self.failure.detail if self.failure else "The model is still loading.", retry_after=5)
        return self._parts

    def _warm_up(self, library: Library) -> None:
        try:
            library.warm_up()
            if self.settings.model == EMBEDDED:  # whose answers it chooses
                library.ranker.score("warm", ["warm"])
        except Exception:
            log.exception("search cannot be warmed up")

    async def _load(self, serving: bool) -> None:
        try:
            await self._assemble(await asyncio.to_thread(self._make_engine), serving)
        except Exception as error:
            self.failure = translate(error)
            if self.failure is None:
                log.exception("the model cannot be loaded", model=self.model_name)
                self.failure = Unavailable("The model cannot be loaded; the log says why.")
            elif serving:  # else nobody reads a log: a command says it
                option = isinstance(self.failure, InvalidRequest)  # a drafter, a policy: the model is not at fault
                what = "an option is refused" if option else "the model cannot be loaded"
                log.error(what, model=self.model_name, reason=self.failure.detail)
        finally:
            self.ended.set()

    def _make_engine(self) -> AsyncEngine:
        from service.engine.async_engine import AsyncEngine

        return AsyncEngine(self._given, self.settings.engine) if self._given else load_engine(self.settings)

    async def _assemble(self, engine: AsyncEngine, serving: bool) -> None:
        loaded = engine.engine.loaded
        if loaded.tokenizer is not None:
            encoder = Encoder(loaded.tokenizer)
            fingerprint = loaded.tokenizer_fingerprint or ""
            self.library.set_tokenizer(CorpusTokenizer(fingerprint, encoder.text))
        layout = layout_for(self.settings.model, loaded.tokenizer, lambda: self.library.ranker, loaded.num_parameters)
        finder = EvidenceFinder(self.library, layout, engine.window, self.settings)
        engine.observers = self.observers
        if serving:
            engine.on_lost = self._lose
        await asyncio.to_thread(engine.start)
        answerer = Answerer(finder, engine, layout)
        receipts = ReceiptMaker(engine, self.model_name, Signer(self.library.database))
        self._parts = _Parts(engine, answerer, chat_layout_for(loaded.tokenizer), receipts)
        if serving:
            self._filler = TableFiller(self.tables, answerer)
            watcher = Watcher(self.watches, answerer, self.settings.webhook_private)
            self._working += [asyncio.create_task(self._filler.serve()), asyncio.create_task(watcher.serve())]
            if self.settings.warm_passages:
                await self._warm_passages(engine, layout)
        log.info("ready", model=self.model_name, precision=loaded.arithmetic, window=engine.window)

    async def _warm_passages(self, engine: AsyncEngine, layout: PromptLayout) -> None:
        """Have the passages of documents read that are indexed from now on, if the model's KV can be moved."""
        try:
            await asyncio.wrap_future(engine.run(lambda own: own.blending.check_movable()))
        except InvalidRequest as error:
            log.error("passages are not read ahead", model=self.model_name, reason=error.detail)
            return
        warmer = PassageWarmer(self.library, engine, layout, self.settings.warm_passages)
        self.jobs.on_ingested = warmer.take
        self._working.append(asyncio.create_task(warmer.serve()))

    def _lose(self, error: DeviceLost) -> None:
        self.failure = error
        self.on_lost(error)


def end_process(error: DeviceLost) -> None:
    """Say why on stderr and end, without the exit handlers that a lost device can hang."""
    print(f"folio: {error.detail}", file=sys.stderr, flush=True)
    time.sleep(LAST_WORDS_S)
    os._exit(Exit.FAILED)

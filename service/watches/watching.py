"""Asking watched questions again, owners in turns, and telling whoever wants to know."""

from __future__ import annotations

import asyncio
import secrets
from collections import Counter
from typing import Any

import structlog

from retrieval.errors import RetrievalError
from service.answering.answer import Answerer, collect
from service.answering.question import Sampling
from service.errors import Busy, FolioError, Unavailable, outward
from service.owner import in_the_name_of
from service.watches.changes import State, difference, state_of
from service.watches.store import Change, Watch, WatchStore
from service.watches.webhooks import deliver

log = structlog.get_logger(__name__)

LOOK_S = 0.5
"""between looks at the journal"""
CHECKS = 8
"""questions under way at once, of which one owner has one"""
DELIVERIES = 8
"""under way at once, of which one owner has half"""


class Watcher:
    """Looks after the watches of one database with one answerer. Of one event loop."""

    def __init__(self, store: WatchStore, answerer: Answerer, private: bool) -> None:
        """private: whether webhooks may lead to addresses of the own network."""
        self.holder = secrets.token_hex(8)
        self._store = store
        self._answerer = answerer
        self._private = private
        self._running: set[asyncio.Task[Any]] = set()
        self._asking: Counter[str] = Counter()
        """Questions under way, by owner."""
        self._delivering: set[asyncio.Task[Any]] = set()
        self._telling: Counter[str] = Counter()
        """Deliveries under way, by owner."""

    async def serve(self) -> None:
        """Ask whatever is due, until cancelled."""
        try:
            while True:
                try:
                    while len(self._running) < CHECKS:
                        watch = await asyncio.to_thread(self._store.claim, self.holder, list(self._asking))
                        if watch is None:
                            break
                        self._asking[watch.owner] += 1
                        self._start(self._running, self._check_claimed(watch))
                    await self._deliver_some()
                except RetrievalError as error:  # the database is busy or gone; it may come back
                    log.warning("watches wait", cause=str(error))
                await asyncio.sleep(LOOK_S)
        finally:
            tasks = [*self._running, *self._delivering]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def check(self, watch: Watch) -> Change | None:
        """Ask a claimed watch if what it is about has changed; returns what became different."""
        try:
            with in_the_name_of(watch.owner):
                return await self._check(watch)
        except (Busy, Unavailable) as error:
            log.warning("a watched question is left for later", watch=watch.id, cause=error.detail)
        except asyncio.CancelledError:
            await asyncio.shield(asyncio.to_thread(self._store.release, watch, self.holder))
            raise
        except Exception:
            log.exception("a watched question is left for later", watch=watch.id)
        await asyncio.to_thread(self._store.release, watch, self.holder)
        return None

    async def deliver_all(self) -> None:
        """Tell the webhooks of everything that is pending."""
        while True:
            await self._deliver_some()
            if not self._delivering:
                return
            await asyncio.gather(*self._delivering)

    async def _check_claimed(self, watch: Watch) -> None:
        try:
            await self.check(watch)
        finally:
            del self._asking[watch.owner]

    async def _check(self, watch: Watch) -> Change | None:
        seen, touched = await asyncio.to_thread(self._store.touched, watch)
        if not touched and watch.checked_at is not None:
            await asyncio.to_thread(self._store.keep, watch, self.holder, seen, None)
            return None
        state = await self._asked(watch)
        differs = None
        if watch.checked_at is not None:
            differs = await asyncio.to_thread(difference, watch.state, state)
        return await asyncio.to_thread(self._store.keep, watch, self.holder, seen, state, touched, differs)

    async def _asked(self, watch: Watch) -> State:
        params = Sampling().params(self._answerer.answer_tokens, self._answerer.engine.sampling_defaults)
        try:
            return state_of(await collect(self._answerer.answer(watch.spec.question, params, watch.owner)))
        except (Busy, Unavailable):
            raise
        except Exception as error:  # a document that it names is gone, say: that is what its answer has become
            known = outward(error)
            if known is None:
                log.exception("a watched question cannot be answered", watch=watch.id)
                known = FolioError("Something went wrong here; the log says what.")
            return _none(known)

    async def _deliver_some(self) -> None:
        while len(self._delivering) < DELIVERIES:
            busy = [owner for owner, count in self._telling.items() if count >= DELIVERIES // 2]
            found = await asyncio.to_thread(self._store.to_deliver, busy)
            if found is None:
                return
            self._telling[found[0].owner] += 1
            self._start(self._delivering, self._deliver(*found))

    async def _deliver(self, watch: Watch, change: Change) -> None:
        try:
            url = watch.spec.webhook or ""
            why = await deliver(url, watch.secret, change.id, change_data(watch, change), self._private)
            if why is not None:
                log.warning("a webhook was not told", watch=watch.id, cause=why)
            await asyncio.to_thread(self._store.delivered, change, why)
        finally:
            self._telling[watch.owner] -= 1

    def _start(self, among: set[asyncio.Task[Any]], work: Any) -> None:
        task = asyncio.create_task(work)
        among.add(task)
        task.add_done_callback(among.discard)


def change_data(watch: Watch, change: Change) -> dict[str, Any]:
    """A change as JSON, for webhooks and everyone else."""
    return {
        "watch": watch.id,
        "change": change.id,
        "question": watch.spec.text,
        "at": change.at.isoformat(),
        "documents": change.documents,
        "before": change.before,
        "after": change.after,
        "difference": change.difference,
    }


def _none(error: FolioError) -> State:
    return {"answer": error.detail, "refused": True, "verified": False, "citations": [], "read": []}

"""Places at work that takes threads and processors, shared fairly between owners."""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

T = TypeVar("T")


class Turns:
    """So many places. One owner never holds all of them, and owners who wait take turns. Of one event loop.

    Args:
        places: 2 or more; with one place each would wait for every other.
    """

    def __init__(self, places: int = 2) -> None:
        self._free = places
        self._each = places - 1
        self._held: Counter[str] = Counter()
        self._waiting: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()
        """By owner, the one whose turn is next first."""

    async def run(self, owner: str, work: Callable[[], T]) -> T:
        """What `work` returns, or raises, in a thread.

        Who is cancelled while he waits for his turn gives it up; once it has come, the place is free again when the
        work has ended.
        """
        await self._enter(owner)
        running = asyncio.ensure_future(asyncio.to_thread(work))
        running.add_done_callback(lambda done: self._leave(owner, done))
        return await asyncio.shield(running)

    @asynccontextmanager
    async def of(self, owner: str) -> AsyncIterator[None]:
        """A place for as long as the block lasts."""
        await self._enter(owner)
        try:
            yield
        finally:
            self._leave(owner)

    async def _enter(self, owner: str) -> None:
        if self._free and self._held[owner] < self._each and owner not in self._waiting:
            self._take(owner)
            return
        mine: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(owner, deque()).append(mine)
        try:
            await mine
        except asyncio.CancelledError:
            if mine.done() and not mine.cancelled():  # given in the same moment
                self._leave(owner)
            else:
                self._forget(owner, mine)
            raise

    def _take(self, owner: str) -> None:
        self._free -= 1
        self._held[owner] += 1

    def _leave(self, owner: str, done: asyncio.Future[Any] | None = None) -> None:
        if done is not None and not done.cancelled():
            done.exception()  # which whoever waited has seen, unless he left
        self._free += 1
        self._held[owner] -= 1
        if not self._held[owner]:
            del self._held[owner]
        self._pass_on()

    def _pass_on(self) -> None:
        for owner in list(self._waiting):
            if not self._free:
                return
            if self._held[owner] < self._each:
                first = self._waiting[owner].popleft()
                self._take(owner)
                self._waiting.move_to_end(owner)
                if not self._waiting[owner]:
                    del self._waiting[owner]
                first.set_result(None)

    def _forget(self, owner: str, mine: asyncio.Future[None]) -> None:
        waiting = self._waiting.get(owner)
        if waiting is not None and mine in waiting:
            waiting.remove(mine)
            if not waiting:
                del self._waiting[owner]

"""Concurrent calls gathered into one.

Whoever calls while a batch is under way waits and is part of the next, so that a matrix is read once for ten queries
instead of ten times. One thread runs all batches, because every thread that multiplies matrices gets worker threads of
its own, and ten such crews fight for two cores.

Callers who have just been answered together tend to ask again together. The first of them to come back waits a moment
for the others, for a batch costs more than its share of queries: otherwise it would be answered alone while they all
wait for it. A caller that is alone never waits.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

IDLE_S = 30.0
"""the thread ends after so long without a call; the next call starts another"""
GAP_S = 0.003
"""a batch that is smaller than the last begins when nobody has called for so long"""
GATHER_S = 0.015
"""and after so long in any case"""


class Batcher(Generic[Item, Result]):
    """``run(items) -> results`` in the same order, called with everything that was asked meanwhile.

    A result that is an exception is raised to its caller alone; one that ``run`` raises, to every caller of the batch.
    """

    def __init__(self, run: Callable[[Sequence[Item]], Sequence[Result | Exception]]) -> None:
        self._run = run
        self._changed = threading.Condition()
        self._waiting: list[tuple[Item, Future[Result]]] = []
        self._working = False
        self._last_size = 0

    def __call__(self, item: Item) -> Result:
        return self.submit(item).result()

    def submit(self, item: Item) -> Future[Result]:
        """The result to come; one that is cancelled before its batch begins takes no part in it."""
        future: Future[Result] = Future()
        with self._changed:
            self._waiting.append((item, future))
            if not self._working:
                self._working = True
                threading.Thread(target=self._work, name="batcher", daemon=True).start()
            self._changed.notify()
        return future

    def _work(self) -> None:
        while True:
            with self._changed:
                if not self._changed.wait_for(lambda: bool(self._waiting), IDLE_S):
                    self._working = False
                    return
                self._gather()
                batch, self._waiting = self._waiting, []
                self._last_size = len(batch)
            self._finish([call for call in batch if call[1].set_running_or_notify_cancel()])

    def _gather(self) -> None:
        """Wait for as many calls as the last batch had, while they come one upon another."""
        end = time.monotonic() + GATHER_S
        while len(self._waiting) < self._last_size and (left := end - time.monotonic()) > 0:
            if not self._changed.wait(min(GAP_S, left)):
                return

    def _finish(self, batch: Sequence[tuple[Item, Future[Result]]]) -> None:
        if not batch:
            return
        try:
            results: Sequence[Result | Exception] = self._run([item for item, _ in batch])
        except Exception as error:
            results = [error] * len(batch)
        for (_, future), result in zip(batch, results, strict=True):
            if isinstance(result, Exception):
                future.set_exception(result)
            else:
                future.set_result(result)

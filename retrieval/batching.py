"""Concurrent calls gathered into one.

Whoever calls while a batch is under way waits and is part of the next: no timer, no delay for a caller that is
alone, and a matrix read once for ten queries instead of ten times. One thread runs all batches, because every thread
that multiplies matrices gets worker threads of its own, and ten such crews fight for two cores.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

IDLE_S = 30.0
"""the thread ends after so long without a call; the next call starts another"""


class Batcher(Generic[Item, Result]):
    """``run(items) -> results`` in the same order, called with everything that was asked meanwhile."""

    def __init__(self, run: Callable[[Sequence[Item]], Sequence[Result]]) -> None:
        self._run = run
        self._changed = threading.Condition()
        self._waiting: list[_Call[Item, Result]] = []
        self._working = False

    def __call__(self, item: Item) -> Result:
        call: _Call[Item, Result] = _Call(item)
        with self._changed:
            self._waiting.append(call)
            if not self._working:
                self._working = True
                threading.Thread(target=self._work, name="batcher", daemon=True).start()
            self._changed.notify_all()
            self._changed.wait_for(lambda: call.done)
        return call.result()

    def _work(self) -> None:
        while True:
            with self._changed:
                if not self._changed.wait_for(lambda: bool(self._waiting), IDLE_S):
                    self._working = False
                    return
                batch, self._waiting = self._waiting, []
            self._finish(batch)
            with self._changed:
                for call in batch:
                    call.done = True
                self._changed.notify_all()

    def _finish(self, batch: list[_Call[Item, Result]]) -> None:
        try:
            results = self._run([call.item for call in batch])
            for call, result in zip(batch, results, strict=True):
                call.value = result
        except Exception as error:  # every caller of the batch is told
            for call in batch:
                call.error = error


class _Call(Generic[Item, Result]):
    def __init__(self, item: Item) -> None:
        self.item = item
        self.done = False
        self.value: Result | None = None
        self.error: Exception | None = None

    def result(self) -> Result:
        if self.error is not None:
            raise self.error
        return self.value  # type: ignore[return-value]


Task = tuple[Callable[[Sequence[Any]], Sequence[Any]], Any]
"""(a function of many items, one item)"""


def run_tasks(tasks: Sequence[Task]) -> list[Any]:
    """Call each function once with all of its items: different kinds of work on one thread."""
    results: dict[int, Any] = {}
    for function in {id(task[0]): task[0] for task in tasks}.values():
        members = [position for position, task in enumerate(tasks) if task[0] is function]
        results.update(zip(members, function([tasks[position][1] for position in members]), strict=True))
    return [results[position] for position in range(len(tasks))]

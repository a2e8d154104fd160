"""Concurrent calls gathered into one.

Whoever calls while a batch is under way waits and is part of the next: no timer, no delay for a caller that is
alone, and a matrix read once for ten queries instead of ten times.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class Batcher(Generic[Item, Result]):
    """``run(items) -> results`` in the same order, called with everything that was asked meanwhile."""

    def __init__(self, run: Callable[[Sequence[Item]], Sequence[Result]]) -> None:
        self._run = run
        self._changed = threading.Condition()
        self._waiting: list[_Call[Item, Result]] = []
        self._busy = False

    def __call__(self, item: Item) -> Result:
        call: _Call[Item, Result] = _Call(item)
        with self._changed:
            self._waiting.append(call)
            self._changed.wait_for(lambda: call.done or not self._busy)
            if call.done:
                return call.result()
            self._busy = True
            batch, self._waiting = self._waiting, []
        try:
            self._finish(batch)
        finally:
            with self._changed:
                for member in batch:
                    member.done = True
                self._busy = False
                self._changed.notify_all()
        return call.result()

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

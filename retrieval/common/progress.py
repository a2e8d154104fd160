"""Progress with an estimate of the time left."""

from __future__ import annotations

import time
from collections.abc import Callable

from retrieval.errors import Cancelled
from retrieval.types import Phase, Progress, ProgressCallback

CancelCheck = Callable[[], bool]


class ProgressMeter:
    """Tells a caller how far one file is, and stops the work when the caller wants it stopped."""

    def __init__(
        self,
        name: str,
        report: ProgressCallback | None = None,
        cancelled: CancelCheck | None = None,
        keep_alive: Callable[[], None] | None = None,
    ) -> None:
        self._name = name
        self._report = report
        self._cancelled = cancelled
        self._keep_alive = keep_alive
        self._phase: Phase | None = None
        self._started = 0.0

    def __call__(self, phase: Phase, done: int, total: int) -> None:
        """Error: Cancelled."""
        if self._cancelled is not None and self._cancelled():
            raise Cancelled(f"{self._name}: cancelled before it was stored; nothing of it was kept")
        if self._keep_alive is not None:
            self._keep_alive()
        if phase != self._phase:
            self._phase, self._started = phase, time.monotonic()
        if self._report is not None:
            self._report(Progress(self._name, phase, done, total, self._eta(done, total)))

    def _eta(self, done: int, total: int) -> float | None:
        if done == 0:
            return None
        return (time.monotonic() - self._started) / done * (total - done)

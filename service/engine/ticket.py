"""A place in the queue, and the clock of the answer that has it."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

from service.engine.config import EngineConfig
from service.engine.outputs import TokenOutput
from service.errors import TimedOut

Observer = Callable[[TokenOutput, float, bool], None]
"""Called with each output, the seconds since the answer began or its previous output, and whether it is the first."""


class Ticket:
    """Holds one of the queue's places while its answer is under way, in one request or many one after another."""

    def __init__(self, limits: EngineConfig, observers: Sequence[Observer]) -> None:
        self._limits = limits
        self._observers = observers
        self._began = self._last = time.monotonic()
        self._first = True

    def observe(self, output: TokenOutput) -> None:
        """Tell the observers of an output of the answer."""
        now = time.monotonic()
        for observe in self._observers:
            observe(output, now - self._last, self._first)
        self._first, self._last = False, now

    async def wait(self, coming: Any) -> Any:
        """What comes, unless the answer's time is up before. Raises TimedOut."""
        spent = time.monotonic() - self._began
        left = self._limits.total_timeout_s - spent
        if self._first:
            left = min(left, self._limits.first_token_timeout_s - spent)
        try:
            async with asyncio.timeout(left if math.isfinite(left) else None):
                return await coming
        except TimeoutError as error:
            what = "No first token came" if self._first else "The answer was not finished"
            raise TimedOut(f"{what} within {time.monotonic() - self._began:.0f} s.") from error

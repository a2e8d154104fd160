"""Sequences that are read and not answered: documents to warm, texts for a datastore, prompts of draft models."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from service.engine.request import Request


class Priority(IntEnum):
    """Whose rows go first, and whose pages are kept longest; within one, the order of arrival."""

    ANSWER = 0
    DRAFT = 1
    """shares a step's rows with prompts, but takes no page from a request"""
    BACKGROUND = 2
    """what the others leave"""


@dataclass(frozen=True)
class Reading:
    """A request of prefill alone: it ends when its tokens lie in pages, and no token is chosen.

    Attributes:
        on_chunk: called with the number of a chunk's first token and the hidden states [n, d] of its tokens; from the
            first token on again where the request was preempted. Such a reading leaves the prefix cache alone.
        on_read: called at the end, while the request has its pages.

    Both run in the engine's thread; what they raise fails the request.
    """

    on_chunk: Callable[[int, Tensor], None] | None = None
    on_read: Callable[[Request], None] | None = None
    priority: Priority = Priority.BACKGROUND

    def take(self, request: Request, start: int, hidden: Tensor | None = None) -> bool:
        """Hand over what was read from ``start`` on; whether that was the last."""
        if self.on_chunk is not None and hidden is not None:
            self.on_chunk(start, hidden)
        if request.num_pending:
            return False
        if self.on_read is not None:
            self.on_read(request)
        return True

"""Reading the passages of documents as they are indexed, so that their KV is there when the first question comes.

A document is found by searches from its commit on, whether or not its passages are read. They are read when the engine
has rows to spare, one document at a time, as far as the disk that is set aside for them goes.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from retrieval.errors import NotFound, RetrievalError
from retrieval.library import Library
from retrieval.types import Hit
from service.answering.prompting.layouts import Passage, PromptLayout
from service.engine.kv import PASSAGES
from service.engine.spans import PassageSpans
from service.errors import FolioError, InvalidRequest
from service.owner import in_the_name_of

if TYPE_CHECKING:
    from service.engine.async_engine import AsyncEngine

log = structlog.get_logger(__name__)

WAITING = 1000
"""documents of one owner that wait to be read; more are left to `folio docs warm`"""
LOOK_S = 0.5
"""between looks at who waits"""


def passage_prompts(layout: PromptLayout, chunks: Sequence[Hit]) -> list[tuple[list[int], PassageSpans]]:
    """A prompt with each chunk as its only passage, and where that lies.

    Raises InvalidRequest for a model whose prompts do not tell.
    """
    prompts = [layout.build("Who?", [Passage.of(hit)]) for hit in chunks]
    told = [(prompt.ids, prompt.spans) for prompt in prompts if prompt.spans is not None]
    if len(told) < len(prompts):
        raise InvalidRequest("The prompts of this model do not tell where passages lie.", param="model")
    return told


@dataclass(frozen=True)
class _Due:
    job: str
    owner: str
    document: str


class PassageWarmer:
    """Reads the documents that a library's jobs have taken in, for one engine."""

    def __init__(self, library: Library, engine: AsyncEngine, layout: PromptLayout, most_bytes: int) -> None:
        """most_bytes: of the files of all passages together, those of `folio docs warm` included."""
        self._library = library
        self._engine = engine
        self._layout = layout
        self._most_bytes = most_bytes
        self._due: deque[_Due] = deque()
        self._turns: dict[str, int] = {}
        """By owner, the number of his last turn."""
        self._lock = threading.Lock()
        self._stop = threading.Event()

    def take(self, job: str, owner: str, document: str) -> None:
        """A job has committed a document. Called by any thread; returns at once."""
        with self._lock:
            room = sum(one.owner == owner for one in self._due) < WAITING
            if room:
                self._due.append(_Due(job, owner, document))
        if not room:
            log.warning("too many documents wait for their passages to be read", document=document)

    async def serve(self) -> None:
        """Read whatever is due, until cancelled."""
        try:
            while True:
                while self._due:
                    await asyncio.to_thread(self.warm_next)
                await asyncio.sleep(LOOK_S)
        finally:
            self.stop()

    def stop(self) -> None:
        """Begin no more passages."""
        self._stop.set()

    def warm_next(self) -> None:
        """Read the passages of the document that waits longest, of the owner whose turn was the longest ago.

        What fails is logged: the document needs it not. Error: IndexError, where none waits.
        """
        due = self._next()
        try:
            chunks = self._library.chunks(due.document, due.owner)
            prompts = passage_prompts(self._layout, chunks)
            with in_the_name_of(due.owner):
                written = self._engine.warm_passages(due.document, prompts, lambda: self._goes_on(due))
            if not self._library.existing([due.document]):  # deleted while the last file was written
                for path in written:
                    path.unlink(missing_ok=True)
        except NotFound:
            return  # deleted meanwhile
        except (FolioError, RetrievalError, OSError) as error:
            log.warning("passages are not read ahead", document=due.document, cause=str(error))

    def _next(self) -> _Due:
        with self._lock:
            if not self._due:
                raise IndexError("no document waits")
            due = min(self._due, key=lambda one: self._turns.get(one.owner, 0))  # the first of equals
            self._due.remove(due)
            self._turns[due.owner] = max(self._turns.values(), default=0) + 1
            return due

    def _goes_on(self, due: _Due) -> bool:
        """Whether the document is still wanted, and there is room for more of its passages."""
        if self._stop.is_set() or self._library.jobs.get(due.job, due.owner).cancel_requested:
            return False
        if not self._library.existing([due.document]):
            return False
        folder = self._engine.engine.config.warm_folder or Path()
        if sum(path.stat().st_size for path in folder.glob(f"*{PASSAGES}")) < self._most_bytes:
            return True
        log.warning("no room for more passages that are read ahead", document=due.document, bytes=self._most_bytes)
        return False

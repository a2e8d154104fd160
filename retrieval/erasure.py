"""Deleting documents, and what is left of them: files, the database's free pages and log, generations of the index.

What a delete promises is in docs/operations.md: from the commit on nothing finds or shows the document, and its text,
vectors and file are gone from the database and the data folder. What else was made of it (postings and vectors in the
generations of the index, left-overs of a crash) goes when the library is tidied, which a worker does every hour.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import sqlalchemy as sa
import structlog

from retrieval.common.failpoints import failpoint
from retrieval.errors import DiskFull, RetrievalError
from retrieval.index.upkeep import IndexUpkeep
from retrieval.store import documents as store
from retrieval.store.database import Database
from retrieval.store.originals import Originals
from retrieval.store.reserve import Reserve
from retrieval.types import Document

log = structlog.get_logger(__name__)

Also = Callable[[sa.Connection], object]
"""Writes more in the transaction of a delete."""


class Erasure:
    """The deletes of one library. Thread-safe."""

    def __init__(self, home: Path, database: Database, originals: Originals, upkeep: IndexUpkeep) -> None:
        self._database = database
        self._originals = originals
        self._upkeep = upkeep
        self._reserve = Reserve(home)
        self._unscrubbed = home / "unscrubbed"
        """There while the database's free pages may hold what was deleted on a full disk."""

    def delete(self, document: str, owner: str, also: Also | None = None) -> Document:
        """See ``Library.delete``."""
        try:
            deleted, hashes = self._delete(document, owner, also)
        except DiskFull:
            with self._reserve.lent():
                self._unscrubbed.touch()
                deleted, hashes = self._delete(document, owner, also, scrub=False)
                self._forget(hashes)
        else:
            self._forget(hashes)
        log.info("document deleted", document=document, chunks=deleted.chunks)
        return deleted

    def tidy(self) -> None:
        """Remove what deletes and crashes left behind, as far as nobody is in the way; called again, it goes on."""
        self._originals.sweep(self._database)
        self._reserve.keep()
        try:
            self._upkeep.forget_deleted()
            if self._unscrubbed.exists():
                self._database.vacuum()
                self._unscrubbed.unlink()
        except RetrievalError as error:  # another process writes, or the disk is full
            log.warning("not all that was deleted is gone from the disk; tried again in an hour", cause=str(error))
        self._database.empty_log()

    def _delete(self, document: str, owner: str, also: Also | None, scrub: bool = True) -> tuple[Document, set[str]]:
        with self._database.write(scrub=scrub) as connection:
            hashes = store.version_hashes(connection, document)
            deleted = store.delete(connection, owner, document)
            if also is not None:
                also(connection)
        failpoint("delete.committed")
        return deleted, hashes

    def _forget(self, hashes: set[str]) -> None:
        with self._database.write() as connection:
            self._originals.forget(connection, hashes)
        self._database.empty_log()

"""The files themselves, named by their content, so that a page of a PDF can be shown beside its text."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa

from retrieval.errors import NotFound
from retrieval.files import in_words, replace_synced
from retrieval.store.tables import versions

SWEEP_BATCH = 1000


class Originals:
    """``files/ab/abcd…`` for each SHA-256. A file is there before SQL names it and goes after SQL forgets it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def path(self, sha256: str) -> Path:
        return self._folder / sha256[:2] / sha256

    def add(self, sha256: str, data: bytes) -> None:
        path = self.path(sha256)
        if path.is_file() and path.stat().st_size == len(data):
            return
        with in_words():
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_synced(path, data)

    def read(self, sha256: str) -> bytes:
        """Error: NotFound."""
        try:
            return self.path(sha256).read_bytes()
        except FileNotFoundError as error:
            raise NotFound("the original file is no longer there; its text is") from error

    def forget(self, connection: sa.Connection, hashes: set[str]) -> None:
        """Remove those of the files that no version names. Within a writing transaction."""
        named = connection.execute(sa.select(versions.c.sha256).where(versions.c.sha256.in_(hashes))).scalars()
        for sha256 in hashes - set(named):
            self.path(sha256).unlink(missing_ok=True)

    def sweep(self, connection: sa.Connection) -> None:
        """Remove every file that no version names: left-overs of a crash. Within a writing transaction."""
        stored = [path.name for path in self._folder.glob("??/*") if not path.name.startswith(".")]
        for at in range(0, len(stored), SWEEP_BATCH):
            self.forget(connection, set(stored[at : at + SWEEP_BATCH]))

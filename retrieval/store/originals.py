"""The files themselves, named by their content, so that a page of a PDF can be shown beside its text."""

from __future__ import annotations

import sqlalchemy as sa

from retrieval.errors import NotFound
from retrieval.store.blobs import Blobs
from retrieval.store.database import Database
from retrieval.store.tables import versions

SWEEP_BATCH = 1000
PART_GRACE_S = 3600.0
"""a part of a file that is older is nobody's any longer"""


class Originals:
    """``files/ab/abcd…`` for each SHA-256. A file is there before SQL names it and goes after SQL forgets it."""

    def __init__(self, blobs: Blobs) -> None:
        self._blobs = blobs

    def add(self, sha256: str, data: bytes) -> None:
        if self._blobs.size(file_name(sha256)) != len(data):
            self._blobs.put(file_name(sha256), data)

    def read(self, sha256: str) -> bytes:
        """Error: NotFound."""
        try:
            return self._blobs.get(file_name(sha256))
        except KeyError as error:
            raise NotFound("the original file is no longer there; its text is") from error

    def sound(self, sha256: str) -> bool:
        """Whether the file is there, unaltered."""
        return self._blobs.sha256(file_name(sha256)) == sha256

    def forget(self, connection: sa.Connection, hashes: set[str]) -> None:
        """Remove those of the files that no version names. Within a writing transaction."""
        named = connection.execute(sa.select(versions.c.sha256).where(versions.c.sha256.in_(hashes))).scalars()
        for sha256 in hashes - set(named):
            self._blobs.remove(file_name(sha256))

    def sweep(self, database: Database) -> None:
        """Remove every file that no version names, and parts of files: left-overs of a crash."""
        stored = {name.rpartition("/")[2]: name for name in self._blobs.names("files")}
        whole = [name for name in stored if not name.startswith(".")]
        for at in range(0, len(whole), SWEEP_BATCH):
            with database.write() as connection:
                self.forget(connection, set(whole[at : at + SWEEP_BATCH]))
        for name in stored.keys() - set(whole):
            if self._blobs.age_s(stored[name]) > PART_GRACE_S:
                self._blobs.remove(stored[name])


def file_name(sha256: str) -> str:
    """Below the data folder, or in the store."""
    return f"files/{sha256[:2]}/{sha256}"

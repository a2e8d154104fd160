"""Which embedding model the vectors of a library are from."""

from __future__ import annotations

import sqlalchemy as sa

from retrieval.embedding.encoding import Embedder
from retrieval.errors import EmbedderMismatch
from retrieval.store.database import Database
from retrieval.store.tables import embedders


def ensure_current(database: Database, embedder: Embedder) -> int:
    """The id of this embedder, which becomes the library's if it has none yet. Error: EmbedderMismatch."""
    with database.read() as connection:
        found = _current(connection)
    if found is None:
        with database.write() as connection:
            found = _current(connection)
            if found is None:
                return make_current(connection, embedder)
    if found.fingerprint != embedder.fingerprint:
        raise EmbedderMismatch(
            f"this library was embedded with {found.fingerprint!r} and was opened with {embedder.fingerprint!r}, whose "
            "vectors cannot be compared; open it with the first one, or run `folio index rebuild` to embed it anew"
        )
    return int(found.id)


def make_current(connection: sa.Connection, embedder: Embedder) -> int:
    """Name this embedder as the one in use. Returns its id."""
    connection.execute(sa.update(embedders).values(current=False))
    number = known(connection, embedder)
    connection.execute(sa.update(embedders).where(embedders.c.id == number).values(current=True))
    return number


def known(connection: sa.Connection, embedder: Embedder) -> int:
    """The id of this embedder, noted if it is new."""
    number = connection.execute(
        sa.select(embedders.c.id).where(embedders.c.fingerprint == embedder.fingerprint)
    ).scalar_one_or_none()
    if number is not None:
        return int(number)
    values = {"fingerprint": embedder.fingerprint, "dim": embedder.dim, "current": False}
    return int(connection.execute(sa.insert(embedders).values(**values).returning(embedders.c.id)).scalar_one())


def _current(connection: sa.Connection) -> sa.Row | None:  # type: ignore[type-arg]
    return connection.execute(sa.select(embedders).where(embedders.c.current)).one_or_none()

"""How much an owner has stored: the files of all versions of his documents, and those that wait to be ingested."""

from __future__ import annotations

import sqlalchemy as sa

from retrieval.errors import StorageFull
from retrieval.store.jobs import CANCELLED, DONE
from retrieval.store.tables import documents, jobs, versions


def stored_bytes(connection: sa.Connection, owner: str) -> int:
    """Bytes of the files of an owner; the same file counts in each version, and once more until its job has ended."""
    kept = (
        sa.select(sa.func.coalesce(sa.func.sum(versions.c.size), 0))
        .join(documents, documents.c.id == versions.c.document_id)
        .where(documents.c.owner == owner)
    )
    waiting = connection.execute(
        sa.select(jobs.c.payload).where(jobs.c.owner == owner, jobs.c.status.not_in((DONE, CANCELLED)))
    ).scalars()
    return int(connection.execute(kept).scalar_one()) + sum(
        file["size"] for payload in waiting for file in payload["files"]
    )


def check_room(connection: sa.Connection, owner: str, size: int, most: float) -> None:
    """Error: StorageFull, where ``size`` more bytes would be more than ``most``. Within a writing transaction."""
    used = stored_bytes(connection, owner)
    if used + size > most:
        raise StorageFull(
            f"{most / 2**20:.0f} MiB may be stored and {used / 2**20:.1f} MiB are, earlier versions and what waits "
            f"included; {size / 2**20:.1f} MiB more do not fit; delete documents, or ask the operator for more"
        )

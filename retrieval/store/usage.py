"""How much an owner has stored: the files of all versions of his documents, and those that wait to be ingested."""

from __future__ import annotations

import sqlalchemy as sa

from retrieval.errors import StorageFull
from retrieval.store.jobs import CANCELLED, DONE, FAILED
from retrieval.store.tables import documents, jobs, versions


def stored_bytes(connection: sa.Connection, owner: str) -> int:
    """Bytes of the files of an owner, whether they are ingested yet or not; the same file counts in each version."""
    kept = (
        sa.select(sa.func.coalesce(sa.func.sum(versions.c.size), 0))
        .join(documents, documents.c.id == versions.c.document_id)
        .where(documents.c.owner == owner)
    )
    waiting = connection.execute(
        sa.select(jobs).where(jobs.c.owner == owner, jobs.c.status.not_in((DONE, CANCELLED)))
    ).all()
    return int(connection.execute(kept).scalar_one()) + sum(
        file["size"]
        for job in waiting
        for file in job.payload["files"][0 if job.status == FAILED else len(job.results) :]  # a failed one keeps all
    )


def check_room(connection: sa.Connection, owner: str, size: int, most: float) -> None:
    """Error: StorageFull, where ``size`` more bytes would be more than ``most``. Within a writing transaction."""
    used = stored_bytes(connection, owner)
    if used + size > most:
        raise StorageFull(
            f"{most / 2**20:.0f} MiB may be stored and {used / 2**20:.1f} MiB are, earlier versions and what waits "
            f"included; {size / 2**20:.1f} MiB more do not fit; delete documents, or ask the operator for more"
        )

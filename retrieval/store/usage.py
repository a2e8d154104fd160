"""How much an owner has stored: files of all versions of his documents, files that wait, conversations, responses."""

from __future__ import annotations

import sqlalchemy as sa

from retrieval.errors import StorageFull
from retrieval.store.jobs import CANCELLED, DONE, FAILED
from retrieval.store.tables import conversations, documents, jobs, responses, versions


def stored_bytes(connection: sa.Connection, owner: str) -> int:
    """Bytes that an owner has stored. Files count whether they are ingested yet or not, and in each version anew."""
    kept = (
        sa.select(sa.func.coalesce(sa.func.sum(versions.c.size), 0))
        .join(documents, documents.c.id == versions.c.document_id)
        .where(documents.c.owner == owner)
    )
    waiting = connection.execute(
        sa.select(jobs).where(jobs.c.owner == owner, jobs.c.status.not_in((DONE, CANCELLED)))
    ).all()
    files = int(connection.execute(kept).scalar_one()) + sum(
        file["size"]
        for job in waiting
        for file in job.payload["files"][0 if job.status == FAILED else len(job.results) :]  # a failed one keeps all
    )
    return files + said_bytes(connection, owner, conversations) + said_bytes(connection, owner, responses)


def said_bytes(connection: sa.Connection, owner: str, table: sa.Table) -> int:
    """Bytes of an owner's conversations, or responses."""
    total = sa.select(sa.func.coalesce(sa.func.sum(table.c.size), 0)).where(table.c.owner == owner)
    return int(connection.execute(total).scalar_one())


def check_room(connection: sa.Connection, owner: str, size: int, most: float) -> None:
    """Error: StorageFull, where ``size`` more bytes would be more than ``most``. Within a writing transaction."""
    used = stored_bytes(connection, owner)
    if used + size > most:
        raise StorageFull(
            f"{most / 2**20:.0f} MiB may be stored and {used / 2**20:.1f} MiB are, earlier versions and what waits "
            f"included; {size / 2**20:.1f} MiB more do not fit; delete documents or conversations, or ask the operator "
            "for more"
        )

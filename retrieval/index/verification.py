"""Checking the store and the index against each other."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import sqlalchemy as sa

from retrieval.errors import IndexCorrupt
from retrieval.index.generation import check_files
from retrieval.index.snapshot import Snapshot
from retrieval.store.database import Database
from retrieval.store.originals import Originals
from retrieval.store.tables import chunks, documents, embeddings, index_generations, versions
from retrieval.types import VerifyReport


def verify(
    database: Database, folder: Path, originals: Originals, snapshot: Snapshot, embedder_id: int
) -> VerifyReport:
    """Every hash, every slice, and the invariant: live chunks in SQL = ids of the index − tombstones + journal."""
    with database.read() as connection:
        live = np.array(
            connection.execute(sa.select(chunks.c.id).order_by(chunks.c.id)).scalars().all(), dtype=np.int64
        )
        problems = [
            *_database_problems(connection),
            *_generation_problems(connection, folder),
            *_text_problems(connection),
            *_embedding_problems(connection, embedder_id),
            *_original_problems(connection, originals),
        ]
    served = snapshot.live_ids()
    if missing := len(np.setdiff1d(live, served)):
        problems.append(f"{missing} live chunks cannot be found by a search; run `folio index rebuild`")
    if extra := len(np.setdiff1d(served, live)):
        problems.append(f"{extra} chunks of the index are deleted in SQL; run `folio index rebuild`")
    generation = snapshot.generation
    return VerifyReport(
        generation=generation.number if generation else 0,
        live_chunks=len(live),
        indexed_chunks=len(generation.ids) if generation else 0,
        tombstones=snapshot.tombstones,
        pending=snapshot.pending,
        problems=problems,
    )


def _database_problems(connection: sa.Connection) -> Iterator[str]:
    if connection.dialect.name == "sqlite":
        for (answer,) in connection.exec_driver_sql("PRAGMA quick_check"):
            if answer != "ok":
                yield f"the database is damaged: {answer}; restore it from a backup"


def _generation_problems(connection: sa.Connection, folder: Path) -> Iterator[str]:
    for row in connection.execute(sa.select(index_generations).order_by(index_generations.c.id)):
        try:
            check_files(folder / row.folder, row.manifest_sha256)
        except IndexCorrupt as error:
            yield f"index generation {row.id}: {error}; run `folio index rebuild`"


def _text_problems(connection: sa.Connection) -> Iterator[str]:
    current = sa.select(documents.c.id, documents.c.name, documents.c.version, documents.c.chunks).where(
        documents.c.status != "failed"
    )
    for document in connection.execute(current).all():
        text = connection.execute(
            sa.select(versions.c.text).where(
                versions.c.document_id == document.id, versions.c.version == document.version
            )
        ).scalar_one_or_none()
        rows = connection.execute(
            sa.select(chunks.c.start, chunks.c.end, chunks.c.text).where(chunks.c.document_id == document.id)
        ).all()
        if text is None or len(rows) != document.chunks:
            yield f"{document.name} ({document.id}) has lost its text or chunks; ingest it again"
        elif any(text[row.start : row.end] != row.text for row in rows):
            yield f"{document.name} ({document.id}) has a chunk that is not the slice it claims; ingest it again"


def _embedding_problems(connection: sa.Connection, embedder_id: int) -> Iterator[str]:
    has = sa.exists().where(embeddings.c.chunk_id == chunks.c.id, embeddings.c.embedder_id == embedder_id)
    missing = connection.execute(sa.select(sa.func.count()).select_from(chunks).where(~has)).scalar_one()
    if missing:
        yield f"{missing} chunks have no vector; run `folio index rebuild`"


def _original_problems(connection: sa.Connection, originals: Originals) -> Iterator[str]:
    for row in connection.execute(sa.select(versions.c.sha256, versions.c.document_id).distinct()):
        if not originals.sound(row.sha256):
            yield f"the file of document {row.document_id} is missing or altered; its text is safe; ingest it again"

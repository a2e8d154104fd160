"""A collection as one file: a zip of originals, texts, page spans, chunks and vectors, each with its hash.

Import into a library of the same embedder costs no embedding; into another, the chunks are embedded anew. The present
version of every ready document is exported.
"""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import sqlalchemy as sa

from retrieval.chunking import Chunk
from retrieval.embedding import Embedder
from retrieval.errors import ArchiveError
from retrieval.ingestion import clean_name
from retrieval.parsing import ParsedDocument
from retrieval.store import documents as store
from retrieval.store.originals import Originals
from retrieval.store.tables import chunks, embeddings
from retrieval.types import Document, Page

FORMAT = 1
MANIFEST = "manifest.json"


def export_collection(
    connection: sa.Connection,
    originals: Originals,
    owner: str,
    collection: str,
    embedder_id: int,
    fingerprint: str,
    path: Path,
) -> int:
    """Write the archive to ``path`` (whole or not at all). Returns the number of documents."""
    ready = [found for found in store.listing(connection, owner, collection, None, None) if found.status == store.READY]
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with zipfile.ZipFile(aside, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            entries = [_export_document(connection, originals, archive, found, embedder_id) for found in ready]
            manifest = {"format": FORMAT, "collection": collection, "embedder": fingerprint, "documents": entries}
            archive.writestr(MANIFEST, json.dumps(manifest, indent=1))
        with aside.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)
    return len(ready)


def _export_document(
    connection: sa.Connection, originals: Originals, archive: zipfile.ZipFile, found: Document, embedder_id: int
) -> dict[str, Any]:
    rows = connection.execute(
        sa.select(chunks, embeddings.c.vector)
        .join(embeddings, sa.and_(embeddings.c.chunk_id == chunks.c.id, embeddings.c.embedder_id == embedder_id))
        .where(chunks.c.document_id == found.id)
        .order_by(chunks.c.ordinal)
    ).all()
    pages = store.read_pages(connection, found.owner, found.id, None)
    parts = {
        "original": originals.read(found.sha256),
        "text": store.read_text(connection, found.owner, found.id, 0, None, None).encode("utf-8"),
        "vectors": b"".join(row.vector for row in rows),
    }
    for part, data in parts.items():
        archive.writestr(f"{found.id}/{part}", data)
    return {
        "id": found.id,
        "name": found.name,
        "media_type": found.media_type,
        "sha256": {part: hashlib.sha256(data).hexdigest() for part, data in parts.items()},
        "pages": [[page.number, page.start, page.end] for page in pages],
        "chunks": [[row.start, row.end, row.page, row.tokens] for row in rows],
    }


class CollectionArchive:
    """An archive opened for import. Error: ArchiveError, at once for a damaged manifest."""

    def __init__(self, path: Path, embedder: Embedder) -> None:
        self._embedder = embedder
        self._path = path
        try:
            self._archive = zipfile.ZipFile(path)
            self._manifest = json.loads(self._archive.read(MANIFEST))
            self.collection = str(self._manifest["collection"])
        except (OSError, zipfile.BadZipFile, KeyError, TypeError, ValueError) as error:
            raise ArchiveError(f"{path} is not an archive of a collection, or is damaged: {error}") from error
        if self._manifest["format"] != FORMAT:
            raise ArchiveError(f"{path} has format {self._manifest['format']} and this Folio reads {FORMAT}")

    def __enter__(self) -> CollectionArchive:
        return self

    def __exit__(self, *_: object) -> None:
        self._archive.close()

    def read(self, owner: str, collection: str, embedder_id: int) -> Iterator[tuple[store.NewVersion, bytes]]:
        """(what to commit, the original's bytes) of each document. Error: ArchiveError."""
        for entry in self._manifest["documents"]:
            try:
                yield self._read_document(entry, owner, collection, embedder_id)
            except (OSError, zipfile.BadZipFile, KeyError, TypeError, UnicodeDecodeError) as error:
                raise ArchiveError(f"{self._path} is damaged: {error}") from error

    def _read_document(
        self, entry: dict[str, Any], owner: str, collection: str, embedder_id: int
    ) -> tuple[store.NewVersion, bytes]:
        original = _part(self._archive, entry, "original")
        text = _part(self._archive, entry, "text").decode("utf-8")
        pieces = [Chunk(start, end, page, tokens, text[start:end]) for start, end, page, tokens in entry["chunks"]]
        if self._manifest["embedder"] == self._embedder.fingerprint:
            data = _part(self._archive, entry, "vectors")
            vectors = np.frombuffer(data, dtype="<f4").reshape(len(pieces), self._embedder.dim)
        else:
            vectors = self._embedder.encode_documents([piece.text for piece in pieces])
        parsed = ParsedDocument(text, [Page(*page) for page in entry["pages"]], entry["media_type"])
        new = store.NewVersion(
            owner,
            collection,
            clean_name(entry["name"]),
            entry["sha256"]["original"],
            len(original),
            parsed,
            pieces,
            vectors,
            embedder_id,
        )
        return new, original


def _part(archive: zipfile.ZipFile, entry: dict[str, Any], part: str) -> bytes:
    data = archive.read(f"{entry['id']}/{part}")
    if hashlib.sha256(data).hexdigest() != entry["sha256"][part]:
        raise ArchiveError(f"the {part} of {entry['name']} in the archive was altered (its sha256 differs)")
    return data

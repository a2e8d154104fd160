"""A collection as one file: a zip of originals, texts, page spans, chunks and vectors, each with its hash.

Import into a library of the same embedder costs no embedding; into another, the chunks are embedded anew. Every ready
document is exported with all its versions; those before the present one have no chunks.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import sqlalchemy as sa

from retrieval.embedding.encoding import Embedder
from retrieval.errors import ArchiveError
from retrieval.ingest.sources import clean_name
from retrieval.parsing import ParsedDocument
from retrieval.parsing.chunking import Chunk
from retrieval.store import documents as store
from retrieval.store.originals import Originals
from retrieval.store.tables import chunks, embeddings
from retrieval.types import Document, Page, Place

FORMAT = 2
READABLE = (1, 2)
"""format 1 knew the present versions alone"""
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
    ready = [found for found in store.listing(connection, owner, collection, None, None) if found.readable]
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
    parsed = store.read_parsed(connection, found.owner, found.id)
    vectors = b"".join(row.vector for row in rows)
    return {
        **_write_version(archive, found.id, found.name, originals.read(found.sha256), parsed, vectors=vectors),
        "chunks": [[row.start, row.end, row.page, row.tokens, row.context] for row in rows],
        "history": [
            _write_version(archive, f"{found.id}/{number}", found.name, originals.read(old.sha256), old.parsed)
            | {"created_at": old.created_at.isoformat()}
            for number, old in store.older_versions(connection, found.id, found.version)
        ],
    }


def _write_version(
    archive: zipfile.ZipFile, place: str, name: str, original: bytes, parsed: ParsedDocument, **more: bytes
) -> dict[str, Any]:
    """Its file, its text and ``more`` under ``place``; returns what the manifest says of them."""
    parts = {"original": original, "text": parsed.text.encode("utf-8"), **more}
    for part, data in parts.items():
        archive.writestr(f"{place}/{part}", data)
    return {
        "id": place,
        "name": name,
        "media_type": parsed.media_type,
        "sha256": {part: hashlib.sha256(data).hexdigest() for part, data in parts.items()},
        "pages": [[page.number, page.start, page.end] for page in parsed.pages],
        "notes": parsed.notes,
        "places": parsed.places,
        "unread_share": parsed.unread_share,
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
        if self._manifest["format"] not in READABLE:
            found = self._manifest["format"]
            raise ArchiveError(f"{path} has format {found} and this Folio reads up to {READABLE[-1]}")

    def __enter__(self) -> CollectionArchive:
        return self

    def __exit__(self, *_: object) -> None:
        self._archive.close()

    def read(self, owner: str, collection: str, embedder_id: int) -> Iterator[tuple[store.NewVersion, bytes]]:
        """(what to commit, the original's bytes) of each document. Error: ArchiveError."""
        for entry in self._manifest["documents"]:
            try:
                yield self._read_document(entry, owner, collection, embedder_id)
            except (OSError, zipfile.BadZipFile, KeyError, TypeError, ValueError) as error:
                raise ArchiveError(f"{self._path} is damaged: {error}") from error

    def _read_document(
        self, entry: dict[str, Any], owner: str, collection: str, embedder_id: int
    ) -> tuple[store.NewVersion, bytes]:
        original, parsed = self._read_version(entry)
        text = parsed.text
        pieces = [  # archives of older versions have no contexts
            Chunk(start, end, page, tokens, text[start:end], *context)
            for start, end, page, tokens, *context in entry["chunks"]
        ]
        if self._manifest["embedder"] == self._embedder.fingerprint:
            data = _part(self._archive, entry, "vectors")
            vectors = np.frombuffer(data, dtype="<f4").reshape(len(pieces), self._embedder.dim)
        else:
            vectors = self._embedder.encode_documents([piece.in_context for piece in pieces])
        history = []
        for old in entry.get("history", []):
            data, old_parsed = self._read_version(old)
            created_at = dt.datetime.fromisoformat(old["created_at"])
            history.append(store.OldVersion(old["sha256"]["original"], len(data), old_parsed, created_at, data))
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
            history,
        )
        return new, original

    def _read_version(self, entry: dict[str, Any]) -> tuple[bytes, ParsedDocument]:
        """Its file, and what was read from it."""
        text = _part(self._archive, entry, "text").decode("utf-8")
        parsed = ParsedDocument(
            text,
            [Page(*page) for page in entry["pages"]],
            entry["media_type"],
            entry.get("notes", []),
            [Place(start, end, tuple(path)) for start, end, path in entry.get("places", [])],
            unread_share=entry.get("unread_share", 0.0),
        )
        return _part(self._archive, entry, "original"), parsed


def _part(archive: zipfile.ZipFile, entry: dict[str, Any], part: str) -> bytes:
    data = archive.read(f"{entry['id']}/{part}")
    if hashlib.sha256(data).hexdigest() != entry["sha256"][part]:
        raise ArchiveError(f"the {part} of {entry['name']} in the archive was altered (its sha256 differs)")
    return data

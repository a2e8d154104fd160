"""One file after another into the store: read, deduplicate, parse, chunk, embed, commit.

A file is acknowledged when its one transaction is committed, and is then there whatever happens later. A file that
cannot be read fails alone, with its cause.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import structlog

from retrieval.common.failpoints import failpoint
from retrieval.common.progress import CancelCheck, ProgressMeter
from retrieval.embedding.encoding import Embedder, Encoder
from retrieval.errors import EmptyFile, NameTaken, NoSuchFile, UnreadableFile
from retrieval.ingest.sources import Source
from retrieval.parsing import Limits, ParsedDocument
from retrieval.parsing.chunking import Chunk, ChunkingOptions, chunk
from retrieval.parsing.sandbox import Sandbox
from retrieval.store import documents as store
from retrieval.store.database import Database
from retrieval.store.lease import WriterLease
from retrieval.store.originals import Originals
from retrieval.types import IngestResult, ProgressCallback

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Prepared:
    """A file that is parsed, chunked and embedded, and not yet stored.

    Attributes:
        vectors: float32[len(pieces), dim].
    """

    name: str
    data: bytes
    sha256: str
    parsed: ParsedDocument
    pieces: list[Chunk]
    vectors: np.ndarray


@dataclass(frozen=True)
class Refused:
    """A file that cannot be prepared, and why."""

    name: str
    data: bytes
    error: UnreadableFile


def prepare(
    name: str, data: bytes, sandbox: Sandbox, embedder: Embedder, chunking: ChunkingOptions, meter: ProgressMeter
) -> Prepared:
    """Parse, chunk and embed. Needs no store, so that it can be done by anybody, anywhere. Error: UnreadableFile."""
    parsed, pieces = parse_and_chunk(name, data, sandbox, embedder, chunking, meter)
    meter("embed", 0, len(pieces))
    vectors = embedder.encode_documents(
        [piece.in_context for piece in pieces], lambda done, total: meter("embed", done, total)
    )
    return Prepared(name, data, hashlib.sha256(data).hexdigest(), parsed, pieces, vectors)


def parse_and_chunk(
    name: str, data: bytes, sandbox: Sandbox, embedder: Embedder, chunking: ChunkingOptions, meter: ProgressMeter
) -> tuple[ParsedDocument, list[Chunk]]:
    """The part of `prepare` that needs the embedder's tokenizer alone. Error: UnreadableFile."""

    def progress(done: int, total: int) -> None:
        meter("parse", done, total)

    parsed = sandbox.parse(data, name, progress)
    if isinstance(embedder, Encoder):
        pieces = sandbox.chunk(name, parsed, embedder.tokens, chunking, progress)
    else:  # a caller's own, of this process alone
        pieces = chunk(parsed.text, parsed.pages, embedder.token_starts, chunking, parsed.tables, parsed.headings)
    if not pieces:
        raise EmptyFile(f"{name} has no words to index; nothing to ingest")
    return parsed, pieces


class Ingester:
    """Ingests for one library. The caller holds the write lease."""

    def __init__(
        self,
        database: Database,
        originals: Originals,
        lease: WriterLease,
        embedder: Embedder,
        embedder_id: Callable[[], int],
        limits: Limits,
        sandbox: Sandbox,
        chunking: ChunkingOptions,
    ) -> None:
        self._database = database
        self._originals = originals
        self._lease = lease
        self._embedder = embedder
        self._embedder_id = embedder_id
        self.limits = limits
        self._sandbox = sandbox
        self._chunking = chunking

    def ingest(
        self,
        source: Source,
        collection: str,
        owner: str,
        progress: ProgressCallback | None = None,
        cancelled: CancelCheck | None = None,
    ) -> IngestResult:
        """Ingest one file. Never raises for what is wrong with the file; Cancelled and LeaseLost do pass."""
        started = time.perf_counter()
        meter = ProgressMeter(source.name, progress, cancelled, self._lease.keep_alive)
        data = b""
        try:
            meter("parse", 0, 1)
            data = source.read(self.limits)
            return self._ingest(source.name, data, collection, owner, meter, started)
        except UnreadableFile as error:
            return self._failed(source.name, data, collection, owner, error, started)

    def prepare(
        self,
        source: Source,
        collection: str,
        owner: str,
        progress: ProgressCallback | None = None,
        cancelled: CancelCheck | None = None,
    ) -> Prepared | Refused | Source:
        """All of an ingest that needs no right to write; ``keep`` is the rest. Errors: Cancelled, EmbedderMismatch."""
        started = time.perf_counter()
        meter = ProgressMeter(source.name, progress, cancelled)
        data = b""
        try:
            meter("parse", 0, 1)
            self._embedder_id()
            data = source.read(self.limits)
            if self._same_content(owner, collection, hashlib.sha256(data).hexdigest(), started) is not None:
                return Source(source.name, data)  # ``keep`` says that it is there
            return prepare(source.name, data, self._sandbox, self._embedder, self._chunking, meter)
        except UnreadableFile as error:
            return Refused(source.name, data, error)

    def _ingest(
        self, name: str, data: bytes, collection: str, owner: str, meter: ProgressMeter, started: float
    ) -> IngestResult:
        sha256 = hashlib.sha256(data).hexdigest()
        same = self._same_content(owner, collection, sha256, started)
        if same is not None:
            return same
        prepared = prepare(name, data, self._sandbox, self._embedder, self._chunking, meter)
        meter("store", 0, 1)
        return self._commit(self._version(prepared, collection, owner), data, started)

    def keep(self, item: Prepared | Refused | Source, collection: str, owner: str) -> IngestResult:
        """Commit what was prepared before, with the same result as `ingest` of the file itself."""
        if isinstance(item, Source):
            return self.ingest(item, collection, owner)
        started = time.perf_counter()
        if isinstance(item, Prepared):
            return self.commit(self._version(item, collection, owner), item.data)
        return self._failed(item.name, item.data, collection, owner, item.error, started)

    def _version(self, item: Prepared, collection: str, owner: str) -> store.NewVersion:
        size, parsed = len(item.data), item.parsed
        return store.NewVersion(
            owner, collection, item.name, item.sha256, size, parsed, item.pieces, item.vectors, self._embedder_id()
        )

    def commit(self, new: store.NewVersion, data: bytes) -> IngestResult:
        """Store a document that is parsed and embedded already, unless its content is there."""
        started = time.perf_counter()
        same = self._same_content(new.owner, new.collection, new.sha256, started)
        return same or self._commit(new, data, started)

    def _same_content(self, owner: str, collection: str, sha256: str, started: float) -> IngestResult | None:
        with self._database.read() as connection:
            same = store.find_same_content(connection, owner, collection, sha256)
        if same is None:
            return None
        seconds = time.perf_counter() - started
        return IngestResult(
            same.id,
            same.name,
            same.status,
            same.pages,
            same.chunks,
            None,
            same.version,
            deduplicated=True,
            seconds=seconds,
            notes=same.notes,
        )

    def _commit(self, new: store.NewVersion, data: bytes, started: float) -> IngestResult:
        self._add_files(new, data)
        failpoint("ingest.original")
        with self._database.write() as connection:
            self._lease.confirm(connection)
            document, version = store.commit_version(connection, new)
            self._add_files(new, data)  # a delete of the same content may have removed it meanwhile
            failpoint("ingest.before_commit")
        failpoint("ingest.after_commit")
        pages, count = len(new.parsed.pages), len(new.chunks)
        log.info("document stored", document=document, version=version, chunks=count, pages=pages)
        seconds = time.perf_counter() - started
        status = store.PARTIAL if new.parsed.partial else store.READY
        notes = new.parsed.notes
        return IngestResult(document, new.name, status, pages, count, None, version, seconds=seconds, notes=notes)

    def _add_files(self, new: store.NewVersion, data: bytes) -> None:
        for sha256, file in [(new.sha256, data), *((old.sha256, old.data) for old in new.history)]:
            self._originals.add(sha256, file)

    def _failed(
        self, name: str, data: bytes, collection: str, owner: str, error: UnreadableFile, started: float
    ) -> IngestResult:
        document = None
        if not isinstance(error, (NoSuchFile, NameTaken)):
            sha256 = hashlib.sha256(data).hexdigest()
            with self._database.write() as connection:
                document = store.record_failure(connection, owner, collection, name, sha256, len(data), str(error))
        log.info("file not ingested", name=name, kind=type(error).__name__, cause=str(error))
        seconds = time.perf_counter() - started
        return IngestResult(
            document, name, store.FAILED, 0, 0, str(error), 0, False, seconds, error_kind=type(error).__name__
        )

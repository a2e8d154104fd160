"""Journal → immutable generation → reader.

SQL is the truth; the journal says in what order it changed. ``Index`` keeps a snapshot current: it takes the newest
generation whose hashes match and replays the journal behind it, else falls back one, else serves everything from SQL
until a generation is built. It never refuses to start.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import sqlalchemy as sa
import structlog

from retrieval.analysis.terms import chunk_terms
from retrieval.common.failpoints import failpoint
from retrieval.errors import EmbedderMismatch, IndexCorrupt
from retrieval.index import shared_generations
from retrieval.index.generation import (
    Generation,
    GenerationContent,
    load_generation,
    sweep,
    write_generation,
)
from retrieval.index.snapshot import Segment, Snapshot
from retrieval.index.sparse import SparseSegment
from retrieval.index.token_store import CorpusTokenizer, TokenStore
from retrieval.store.blobs import RemoteBlobs
from retrieval.store.database import Database
from retrieval.store.lease import WriterLease
from retrieval.store.tables import chunks, documents, embedders, embeddings, index_generations, journal, now, versions
from retrieval.types import DocumentKey, IndexReport

log = structlog.get_logger(__name__)

KEPT_GENERATIONS = 2

# Asked at every search, so put together once: the embedder in use, the journal's end, the newest generation.
_STATE = sa.select(
    sa.select(embedders.c.id).where(embedders.c.current).scalar_subquery(),
    sa.select(sa.func.coalesce(sa.func.max(journal.c.seq), 0)).scalar_subquery(),
    sa.select(sa.func.coalesce(sa.func.max(index_generations.c.id), 0))
    .where(index_generations.c.embedder_id == sa.bindparam("embedder"))
    .scalar_subquery(),
)


_BEFORE_A_DELETE = (
    sa.exists().where(journal.c.op == "delete", journal.c.seq > index_generations.c.seq).correlate(index_generations)
)


class Index:
    """The index of one library in one process. Thread-safe."""

    def __init__(
        self,
        database: Database,
        folder: Path,
        lease: WriterLease,
        embedder_id: int,
        fingerprint: str,
        beside: bool = False,
        remote: RemoteBlobs | None = None,
    ) -> None:
        """beside: of an embedder to which the library is yet to be switched; remote: where generations are shared."""
        self._remote = remote
        self._database = database
        self._folder = folder
        self._lease = lease
        self._embedder_id = embedder_id
        self._fingerprint = fingerprint
        self._beside = beside
        self._corrupt: set[int] = set()
        self._refreshing = threading.RLock()
        self._loading: threading.Thread | None = None
        self.tokenizer: CorpusTokenizer | None = None
        """of which a generation gets a token store"""
        self.notes: list[str] = []
        """what went wrong with the generations that were passed over"""
        self._snapshot = Snapshot.of(None, 0)
        self._adopt(self._newest_valid())

    @property
    def snapshot(self) -> Snapshot:
        return self._snapshot

    def refresh(self) -> Snapshot:
        """Bring the snapshot up to the journal's end; load a newer generation of another process in the background."""
        with self._database.read() as connection:
            embedder_id, seq, newest = connection.execute(_STATE, {"embedder": self._embedder_id}).one()
        if embedder_id not in (self._embedder_id, None) and not self._beside:
            raise EmbedderMismatch(
                "another process has embedded this library anew with another model; open it again with that one"
            )
        if seq > self._snapshot.seq:
            with self._refreshing:
                self._replay()
        loaded = self._snapshot.generation.number if self._snapshot.generation else 0
        if newest > max(loaded, self._passed_over):
            self._load_in_background()
        return self._snapshot

    def holds_deleted(self) -> bool:
        """Whether a generation on the disk was made before a document was deleted."""
        with self._database.read() as connection:
            return connection.execute(sa.select(index_generations.c.id).where(_BEFORE_A_DELETE)).first() is not None

    def build(self, force: bool = False) -> IndexReport:
        """Write a generation of everything live, name it in SQL, and use it. Needs the write lease."""
        started = time.perf_counter()
        with self._lease.hold("building the index"):
            snapshot = self.refresh()
            changed = snapshot.pending or snapshot.tombstones or self._corrupt or self._lacks_tokens(snapshot)
            if snapshot.generation and not changed and not force:
                return self._report(snapshot.generation, started, built=False)
            content = self._content()
            if content is None:  # all was deleted: so are the generations
                with self._refreshing:
                    self._adopt(None)
                self._forget_old(kept=0)
                return IndexReport(0, 0, 0, time.perf_counter() - started, built=False)
            name, manifest_hash = write_generation(self._folder, content)
            if self._remote is not None:
                shared_generations.publish(self._remote, self._folder / name)
            failpoint("generation.before_sql")
            number = self._name_in_sql(name, manifest_hash, content)
            failpoint("generation.after_sql")
            generation = load_generation(self._folder / name, number, manifest_hash, checked=True)
            with self._refreshing:
                self._adopt(generation)
            self._forget_old()
            log.info("index generation built", generation=number, chunks=len(content.ids))
            return self._report(generation, started, built=True)

    def _lacks_tokens(self, snapshot: Snapshot) -> bool:
        if self.tokenizer is None or snapshot.generation is None:
            return False
        return snapshot.generation.manifest.tokenizer != self.tokenizer.fingerprint

    def _report(self, generation: Generation, started: float, built: bool) -> IndexReport:
        return IndexReport(
            generation.number, len(generation.ids), len(generation.documents), time.perf_counter() - started, built
        )

    # -- reading

    def _adopt(self, generation: Generation | None) -> None:
        """Use this generation with the journal behind it. Searches under way keep the old snapshot."""
        self._snapshot = self._replayed(Snapshot.of(generation, generation.seq if generation else 0))

    def _replay(self) -> None:
        self._snapshot = self._replayed(self._snapshot)

    def _replayed(self, snapshot: Snapshot) -> Snapshot:
        with self._database.read() as connection:
            rows = connection.execute(
                sa.select(journal.c.seq, journal.c.op, journal.c.document_id, journal.c.version)
                .where(journal.c.seq > snapshot.seq)
                .order_by(journal.c.seq)
            ).all()
            if not rows:
                return snapshot
            last = {row.document_id: row for row in rows}
            segments = [
                segment
                for row in last.values()
                if row.op == "add" and (segment := self._read_segment(connection, row.document_id, row.version))
            ]
        return snapshot.after(rows[-1].seq, set(last), segments)

    def _read_segment(self, connection: sa.Connection, document: str, version: int) -> Segment | None:
        rows = connection.execute(
            self._live_chunks().where(chunks.c.document_id == document, chunks.c.version == version)
        ).all()
        if not rows:
            return None
        return Segment(
            (document, version),
            np.array([row.id for row in rows], dtype=np.int64),
            _vectors(rows),
            SparseSegment(*_analysed(rows)),
        )

    def _live_chunks(self) -> sa.Select:  # type: ignore[type-arg]
        """Every row of ``chunks`` is live: a delete or a new version removes rows in its own transaction."""
        return (
            sa.select(chunks.c.id, chunks.c.document_id, chunks.c.version, chunks.c.context, chunks.c.text)
            .add_columns(documents.c.name, embeddings.c.vector)
            .join(documents, documents.c.id == chunks.c.document_id)
            .join(
                embeddings, sa.and_(embeddings.c.chunk_id == chunks.c.id, embeddings.c.embedder_id == self._embedder_id)
            )
            .order_by(chunks.c.id)
        )

    def _newest_valid(self) -> Generation | None:
        with self._database.read() as connection:
            rows = connection.execute(
                sa.select(index_generations)
                .where(index_generations.c.embedder_id == self._embedder_id)
                .order_by(index_generations.c.id.desc())
            ).all()
        self._passed_over = max((row.id for row in rows), default=0)
        if self._remote is not None:
            shared_generations.tidy(self._folder, {row.folder for row in rows})
        for row in rows:
            try:
                if self._remote is not None:
                    shared_generations.fetch(self._remote, self._folder, row.folder)
                return load_generation(self._folder / row.folder, row.id, row.manifest_sha256)
            except IndexCorrupt as error:
                self._corrupt.add(row.id)
                self.notes.append(f"generation {row.id} was passed over: {error}")
                log.warning("index generation passed over", generation=row.id, cause=str(error))
        return None

    def _load_in_background(self) -> None:
        with self._refreshing:
            if self._loading is not None and self._loading.is_alive():
                return
            self._loading = threading.Thread(target=self._load_newest, name="load-generation", daemon=True)
            self._loading.start()

    def _load_newest(self) -> None:
        generation = self._newest_valid()
        with self._refreshing:
            current = self._snapshot.generation
            if generation is not None and (current is None or generation.number > current.number):
                self._adopt(generation)

    # -- writing

    def _content(self) -> GenerationContent | None:
        """Everything live, or None where nothing is."""
        with self._database.read() as connection:
            seq = connection.execute(sa.select(sa.func.coalesce(sa.func.max(journal.c.seq), 0))).scalar_one()
            rows = connection.execute(self._live_chunks()).all()
            if not rows:
                return None
            index_of: dict[DocumentKey, int] = {}
            for row in rows:
                index_of.setdefault((row.document_id, row.version), len(index_of))
            tokens = self._tokens(connection, index_of) if self.tokenizer else None
        terms, languages = _analysed(rows)
        return GenerationContent(
            seq=seq,
            embedder=self._fingerprint,
            ids=np.array([row.id for row in rows], dtype=np.int64),
            document_of_row=np.array([index_of[row.document_id, row.version] for row in rows], dtype=np.int32),
            documents=list(index_of),
            vectors=_vectors(rows),
            terms=terms,
            languages=languages,
            tokens=tokens,
        )

    def _tokens(self, connection: sa.Connection, documents: Iterable[DocumentKey]) -> TokenStore:
        assert self.tokenizer is not None
        encode = self.tokenizer.encode

        def text(key: DocumentKey) -> str:
            where = versions.c.document_id == key[0], versions.c.version == key[1]
            return str(connection.execute(sa.select(versions.c.text).where(*where)).scalar_one())

        return TokenStore.build((encode(text(key)) for key in documents), self.tokenizer.fingerprint)

    def _name_in_sql(self, name: str, manifest_hash: str, content: GenerationContent) -> int:
        with self._database.write() as connection:
            self._lease.confirm(connection)
            return int(
                connection.execute(
                    sa.insert(index_generations)
                    .values(
                        folder=name,
                        seq=content.seq,
                        chunks=len(content.ids),
                        embedder_id=self._embedder_id,
                        manifest_sha256=manifest_hash,
                        created_at=now(),
                    )
                    .returning(index_generations.c.id)
                ).scalar_one()
            )

    def _forget_old(self, kept: int = KEPT_GENERATIONS) -> None:
        """Keep the newest generations (one to fall back on, unless it holds what was deleted since).

        The rest is removed from SQL first, then from the disk.
        """
        with self._database.write() as connection:
            rows = connection.execute(sa.select(index_generations).order_by(index_generations.c.id.desc())).all()
            stale = set(connection.execute(sa.select(index_generations.c.id).where(_BEFORE_A_DELETE)).scalars())
            sound = [row for row in rows if row.id not in self._corrupt and (row is rows[0] or row.id not in stale)]
            folders = {row.folder for row in sound[:kept]}
            connection.execute(sa.delete(index_generations).where(index_generations.c.folder.not_in(folders)))
        self._corrupt.clear()
        failpoint("generation.before_sweep")
        sweep(self._folder, folders)
        if self._remote is not None:
            shared_generations.forget(self._remote, folders)


def _analysed(rows: Sequence[sa.Row]) -> tuple[list[list[str]], list[str]]:  # type: ignore[type-arg]
    """The terms of each chunk, and its language; the chunks of a document are together, and tell of one another's."""
    found = [
        analysed
        for _, document in itertools.groupby(rows, key=lambda row: row.document_id)
        for analysed in chunk_terms([(row.name, row.context, row.text) for row in document])
    ]
    return [terms for _, terms in found], [language for language, _ in found]


def _vectors(rows: Sequence[sa.Row]) -> np.ndarray:  # type: ignore[type-arg]
    return np.frombuffer(b"".join(row.vector for row in rows), dtype="<f4").reshape(len(rows), -1)

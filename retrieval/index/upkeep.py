"""The index of a library: opened when it is first needed, kept up to what is written, built anew.

Whoever writes documents does so within ``IndexUpkeep.writing``, which holds the right to write and afterwards brings
the index up to the journal's end.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import sqlalchemy as sa
import structlog

from retrieval.common.failpoints import failpoint
from retrieval.common.progress import ProgressMeter
from retrieval.embedding.encoding import Embedder
from retrieval.errors import RetrievalError
from retrieval.index.index import Index
from retrieval.index.snapshot import Snapshot
from retrieval.index.token_store import CorpusTokenizer, TokenStore
from retrieval.parsing.chunking import in_context
from retrieval.store import documents as store
from retrieval.store import embedders as embedder_store
from retrieval.store.blobs import RemoteBlobs
from retrieval.store.database import Database
from retrieval.store.lease import WriterLease
from retrieval.store.tables import chunks, embeddings, index_generations
from retrieval.types import IndexReport, ProgressCallback

log = structlog.get_logger(__name__)

FOLD_AT = 0.2
"""a journal of so many chunks, as a share of the generation's, is folded into a new generation"""
REEMBED_BATCH = 1024


class IndexUpkeep:
    """Thread-safe."""

    def __init__(
        self,
        folder: Path,
        database: Database,
        embedder: Embedder,
        lease: WriterLease,
        remote: RemoteBlobs | None,
    ) -> None:
        """folder: of the generations; remote: where they are shared."""
        self._folder = folder
        self._database = database
        self._embedder = embedder
        self._lease = lease
        self._remote = remote
        self._opening = threading.RLock()
        self._index: Index | None = None
        self._embedder_id = 0
        self.tokenizer: CorpusTokenizer | None = None
        """Of which the next generation gets a token store."""
        self._token_stores: tuple[Snapshot | None, dict[str, TokenStore]] = None, {}
        """By owner, of the newest snapshot that was asked for one."""

    def index(self) -> Index:
        """The index, loaded. Error: EmbedderMismatch."""
        with self._opening:
            if self._index is None:
                self._embedder_id = embedder_store.ensure_current(self._database, self._embedder)
                self._index = self._new_index(self._embedder_id)
                if self._index.notes:  # a generation was unsound: fold the journal into a sound one
                    _try_build(self._index)
            return self._index

    def embedder_id(self) -> int:
        """The library's embedder in SQL. Error: EmbedderMismatch."""
        self.index()
        return self._embedder_id

    @contextlib.contextmanager
    def writing(self, purpose: str, wait_s: float = 0.0) -> Iterator[None]:
        """Write documents within this block. Errors: StoreBusy (after ``wait_s`` seconds), EmbedderMismatch."""
        with self._lease.hold(purpose, wait_s):
            index = self.index()
            try:
                yield
            finally:
                index.refresh()
            snapshot = index.snapshot
            behind = snapshot.pending + snapshot.tombstones
            indexed = len(snapshot.generation.ids) if snapshot.generation else 0
            if behind and behind >= FOLD_AT * indexed:
                _try_build(index)

    def forget_deleted(self) -> None:
        """Build a generation without what was deleted since the newest was made. Error: StoreBusy."""
        index = self.index()
        index.refresh()
        if index.holds_deleted():
            index.build()

    def check_writable(self, purpose: str, wait_s: float) -> None:
        """Whether ``writing`` would be let in now. Errors: StoreBusy (after ``wait_s`` seconds), EmbedderMismatch."""
        with self._lease.hold(purpose, wait_s):
            self.index()

    def rebuild(self, progress: ProgressCallback | None = None) -> IndexReport:
        """See ``Library.rebuild``."""
        with self._lease.hold("rebuilding the index"):
            with self._database.write() as connection:
                embedder_id = embedder_store.known(connection, self._embedder)
            meter = ProgressMeter("index", progress, keep_alive=self._lease.keep_alive)
            _embed_missing(self._database, self._lease, self._embedder, embedder_id, meter)
            report = self._new_index(embedder_id, beside=True).build(force=True)
            _switch_embedder(self._database, self._lease, self._embedder)
            with self._opening:
                self._embedder_id = embedder_id
                self._index = self._new_index(embedder_id)
        return report

    def set_tokenizer(self, tokenizer: CorpusTokenizer) -> None:
        """See ``Library.set_tokenizer``."""
        self.tokenizer = tokenizer
        self.index().tokenizer = tokenizer

    def token_store(self, owner: str) -> TokenStore | None:
        """See ``Library.token_store``."""
        snapshot = self.index().refresh()
        generation = snapshot.generation
        if generation is None or generation.tokens is None or self.tokenizer is None:
            return None
        if generation.tokens.tokenizer != self.tokenizer.fingerprint:
            return None
        seen, stores = self._token_stores
        if seen is not snapshot:
            stores = {}
            self._token_stores = snapshot, stores
        if owner not in stores:
            with self._database.read() as connection:
                mine = store.ids_in_scope(connection, owner, None, None)
            stores[owner] = generation.tokens.restricted(
                snapshot.alive & np.array([key[0] in mine for key in generation.documents], dtype=bool)
            )
        return stores[owner]

    def _new_index(self, embedder_id: int, beside: bool = False) -> Index:
        fingerprint = self._embedder.fingerprint
        index = Index(self._database, self._folder, self._lease, embedder_id, fingerprint, beside, self._remote)
        index.tokenizer = self.tokenizer
        return index


def _try_build(index: Index) -> None:
    try:
        index.build()
    except RetrievalError as error:
        # The documents are committed and can be searched through the journal; only the folding failed.
        index.notes.append(f"the index was not built after ingesting: {error}")
        log.warning("index not built", cause=str(error))


def _embed_missing(
    database: Database, lease: WriterLease, embedder: Embedder, embedder_id: int, meter: ProgressMeter
) -> int:
    """Embed every chunk that this embedder has not embedded yet, in batches that each survive a crash."""
    without = (
        sa.select(chunks.c.id, chunks.c.context, chunks.c.text)
        .where(~sa.exists().where(embeddings.c.chunk_id == chunks.c.id, embeddings.c.embedder_id == embedder_id))
        .order_by(chunks.c.id)
    )
    with database.read() as connection:
        total = connection.execute(sa.select(sa.func.count()).select_from(without.subquery())).scalar_one()
    done = 0
    while True:
        with database.read() as connection:
            rows = connection.execute(without.limit(REEMBED_BATCH)).all()
        if not rows:
            return done
        texts = [in_context(row.context, row.text) for row in rows]
        vectors = np.ascontiguousarray(embedder.encode_documents(texts), dtype="<f4")
        with database.write() as connection:
            lease.confirm(connection)
            alive = set(
                connection.execute(sa.select(chunks.c.id).where(chunks.c.id.in_([r.id for r in rows]))).scalars()
            )
            batch = [
                {"chunk_id": row.id, "embedder_id": embedder_id, "vector": vector.tobytes()}
                for row, vector in zip(rows, vectors, strict=True)
                if row.id in alive
            ]
            if batch:
                connection.execute(sa.insert(embeddings), batch)
        failpoint("reembed.batch")
        done += len(rows)
        meter("embed", done, max(total, done))


def _switch_embedder(database: Database, lease: WriterLease, embedder: Embedder) -> None:
    """From now on the library is of this embedder; the vectors of the others go."""
    with database.write() as connection:
        lease.confirm(connection)
        embedder_id = embedder_store.make_current(connection, embedder)
        connection.execute(sa.delete(index_generations).where(index_generations.c.embedder_id != embedder_id))
        connection.execute(sa.delete(embeddings).where(embeddings.c.embedder_id != embedder_id))
        failpoint("switch.before_commit")
    log.info("embedder switched", embedder=embedder.fingerprint)

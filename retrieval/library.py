"""The facade: documents in, evidence out.

    with Library.open("~/.folio") as library:
        for result in library.ingest(["book.txt", "paper.pdf"]):
            print(result.name, result.status, result.error)
        hits = library.search("Who built the bridge?", k=5).hits

Every method that touches documents takes ``owner`` and sees that owner's documents alone; what belongs to somebody
else does not exist (NotFound). All methods are thread-safe. Any number of processes may read one library; one at a
time ingests or builds the index (StoreBusy names the other); deletes need no turn. Whatever a method has returned is
on the disk. Every error is a ``retrieval.errors.RetrievalError`` whose text can be shown to the user.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType

import numpy as np
import structlog

from retrieval.checks import check_label, check_query
from retrieval.common.progress import CancelCheck, ProgressMeter
from retrieval.embedding.embedder import check_query_length, make_embedder, newest_tokens
from retrieval.embedding.encoding import Embedder, cosine_weight
from retrieval.erasure import Also, Erasure
from retrieval.errors import RetrievalError, UnreadableFile
from retrieval.index.batching import Batcher
from retrieval.index.searching import Searcher, SearchRequest
from retrieval.index.token_store import CorpusTokenizer, TokenStore
from retrieval.index.upkeep import IndexUpkeep
from retrieval.index.verification import verify
from retrieval.ingest import archive
from retrieval.ingest.ingestion import Ingester, Prepared, Refused, prepare
from retrieval.ingest.jobs import WORKERS, JobQueue
from retrieval.ingest.sources import Source, sources
from retrieval.ingest.unpacking import unpacked
from retrieval.iterative.retrievers import SnapshotRetriever
from retrieval.parsing import Limits
from retrieval.parsing.chunking import ChunkingOptions
from retrieval.parsing.sandbox import Sandbox
from retrieval.ranking.ranker import SentenceRanker, find_ranker, load_ranker, suiting
from retrieval.ranking.reranking import CANDIDATES, reranked
from retrieval.store import documents as store
from retrieval.store.blobs import Blobs, RemoteBlobs, open_blobs
from retrieval.store.database import Database
from retrieval.store.lease import WriterLease
from retrieval.store.originals import Originals, file_name
from retrieval.store.shelf import DEFAULT_OWNER, Shelf, make_home
from retrieval.traces import Trace, forms_of, look_through, needles_of
from retrieval.types import (
    Document,
    IndexReport,
    IngestResult,
    LibraryStats,
    Mode,
    ProgressCallback,
    SearchResult,
    Upload,
    VerifyReport,
)

log = structlog.get_logger(__name__)

DEFAULT_COLLECTION = "default"
VIEW_S = 10.0
"""longest time to draw a page of a PDF, or to find a passage on it"""
VIEWERS = 2
"""processes that do so"""


class Library(Shelf):
    """Documents, their text, and an index over them, in one home folder. Make one with ``Library.open``."""

    def __init__(
        self,
        home: Path,
        database: Database,
        embedder: Embedder,
        limits: Limits,
        chunking: ChunkingOptions,
        blobs: Blobs,
        ranker: str | None = None,
    ) -> None:
        originals, lease = Originals(blobs), WriterLease(database, home)
        views = replace(limits, parse_seconds=VIEW_S, ocr_seconds=0)
        super().__init__(database, originals, Sandbox(views, VIEWERS))
        self.home = home
        self.embedder = embedder
        self.limits = limits
        self.chunking = chunking
        self._lease = lease
        self._sandbox = Sandbox(limits, WORKERS)
        remote = blobs if isinstance(blobs, RemoteBlobs) else None
        self._upkeep = IndexUpkeep(home / "index", database, embedder, lease, remote)
        self._ingester = Ingester(
            database, originals, lease, embedder, self._upkeep.embedder_id, limits, self._sandbox, chunking
        )
        self._erasure = Erasure(home, database, originals, self._upkeep)
        self.jobs = JobQueue(database, blobs, self._upkeep, self._ingester, self._unpacked, self._erasure.tidy)
        """background ingestion: submit, get, listing, cancel, retry, start_worker, stop_worker"""
        self._searcher = Searcher(database, embedder, self._upkeep.index)
        self._searches = Batcher(self._searcher)
        self._rerankings = Batcher(self._rerank)
        self._ranker_name = ranker
        self._ranker_lock = threading.Lock()
        self._queries: Batcher[str, np.ndarray] = Batcher(lambda texts: list(embedder.encode_queries(texts)))

    @classmethod
    def open(
        cls,
        home: str | os.PathLike[str],
        database_url: str | None = None,
        embedder: str | os.PathLike[str] | Embedder | None = None,
        *,
        blobs: str | None = None,
        limits: Limits | None = None,
        chunking: ChunkingOptions | None = None,
        ranker: str | None = None,
    ) -> Library:
        """Open the library in the folder ``home``, which is made where absent.

        Args:
            database_url: SQLAlchemy's; None for the SQLite file ``folio.db`` in ``home``.
            embedder: None or ``minilm`` for the packaged MiniLM, ``multilingual-e5-small`` (extra ``multilingual``), a
                folder, a hub id, or an ``Embedder``.
            blobs: address of the store of files, uploads and index generations (fsspec); None for ``home``.
            ranker: what reranks; see ``retrieval.ranking.ranker.load_ranker``.

        The models and the index are loaded when first needed; ``warm_up`` loads them now, but for the ranker.
        Errors: StoreUnavailable, UnknownEmbedder, UnknownRanker.
        """
        if ranker is not None:
            find_ranker(ranker)
        folder = make_home(home)
        model = make_embedder(Path(embedder) if isinstance(embedder, os.PathLike) else embedder)
        kept = open_blobs(folder, blobs)
        database = Database.open(folder, database_url)
        return cls(folder, database, model, limits or Limits(), chunking or ChunkingOptions(), kept, ranker)

    def warm_up(self) -> None:
        """Load the index and the embedding model, so that the first search is not the slow one."""
        self._upkeep.index().refresh()
        self.embedder.encode_queries(["warm"])

    def close(self) -> None:
        """Stop the worker and the parser, if any, and let go of the database."""
        self.jobs.stop_worker()
        self._sandbox.close()
        super().close()

    def __enter__(self) -> Library:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- documents in

    def ingest(
        self,
        files: Iterable[str | os.PathLike[str] | Upload],
        collection: str = DEFAULT_COLLECTION,
        owner: str = DEFAULT_OWNER,
        *,
        progress: ProgressCallback | None = None,
        cancelled: CancelCheck | None = None,
        follow_links: bool = False,
        wait_s: float = 5.0,
    ) -> list[IngestResult]:
        """Ingest files (paths, folders, or ``Upload``s of bytes), one result each, in order; a zip archive stands for
        the files in it.

        Content that the collection has already is not stored twice (``deduplicated``); the same name with new
        content is a new version of the same document. Each file is committed by itself, and can be searched from
        then on. A file that cannot be read gives a result with ``status="failed"`` and ``error``, and the others
        go on. So does the second of two files that would get one name (``retrieval.ingest.sources``).

        Args:
            progress: called often, from this thread.
            follow_links: also read what links in a folder point to outside of it.
            cancelled: asked often; once true, ``Cancelled`` is raised and what was committed stays.
            wait_s: seconds to wait for another process that is writing.
        Errors: StoreBusy, EmbedderMismatch, Cancelled, LeaseLost.
        """
        check_label("collection", collection)
        check_label("owner", owner)
        given = sources(files, follow_links=follow_links, unpack=self._unpacked)
        with self._upkeep.writing("ingesting", wait_s):
            return [self._ingester.ingest(file, collection, owner, progress, cancelled) for file in given]

    def _unpacked(self, files: Iterable[Source]) -> Iterator[Source]:
        return unpacked(files, self._sandbox, self.limits)

    def ingest_prepared(
        self,
        items: Iterable[Prepared | Refused | Source],
        collection: str = DEFAULT_COLLECTION,
        owner: str = DEFAULT_OWNER,
        *,
        progress: Callable[[IngestResult], None] | None = None,
        wait_s: float = 5.0,
    ) -> list[IngestResult]:
        """Store what others have parsed and embedded, in order; see ``ingest``, whose results these are.

        The right to write is kept while an item is long in coming.

        Args:
            progress: called with each result.
        Errors: StoreBusy, EmbedderMismatch, LeaseLost.
        """
        check_label("collection", collection)
        check_label("owner", owner)
        results = []
        with self._lease.kept_alive(), self._upkeep.writing("ingesting", wait_s):
            for item in items:
                results.append(self._ingester.keep(item, collection, owner))
                if progress is not None:
                    progress(results[-1])
        return results

    def known_content(self, collection: str = DEFAULT_COLLECTION, owner: str = DEFAULT_OWNER) -> frozenset[str]:
        """SHA-256 of the files that need not be read again."""
        found = self.documents(collection, owner)
        return frozenset(document.sha256 for document in found if document.readable)

    def export_collection(
        self, path: str | os.PathLike[str], collection: str = DEFAULT_COLLECTION, owner: str = DEFAULT_OWNER
    ) -> int:
        """Write a collection to one archive file. Returns how many documents. Errors: NotFound, EmbedderMismatch."""
        embedder_id, fingerprint = self._upkeep.embedder_id(), self.embedder.fingerprint
        with self.database.read() as connection:
            return archive.export_collection(
                connection, self._originals, owner, collection, embedder_id, fingerprint, Path(path)
            )

    def import_collection(
        self,
        path: str | os.PathLike[str],
        collection: str | None = None,
        owner: str = DEFAULT_OWNER,
        *,
        wait_s: float = 5.0,
    ) -> list[IngestResult]:
        """Ingest what ``export_collection`` wrote, under its own collection's name unless another is given.

        Content already there is not stored twice. Errors: ArchiveError (what was imported before it stays),
        StoreBusy, EmbedderMismatch.
        """
        check_label("owner", owner)
        with (
            self._upkeep.writing("importing", wait_s),
            archive.CollectionArchive(Path(path), self.embedder) as opened,
        ):
            target = collection or opened.collection
            check_label("collection", target)
            found = opened.read(owner, target, self._upkeep.embedder_id())
            return [self._ingester.commit(*item) for item in found]

    def delete(self, document: str, owner: str = DEFAULT_OWNER, also: Also | None = None) -> Document:
        """Remove a document, all its versions, its vectors and its file; no search finds it from now on.

        Works on a full disk too. Returns what was deleted. Error: NotFound.

        also: writes more in the same transaction.
        """
        return self._erasure.delete(document, owner, also)

    # -- search

    def search(
        self,
        query: str,
        k: int = 10,
        *,
        collection: str | None = None,
        documents: Sequence[str] | None = None,
        owner: str = DEFAULT_OWNER,
        mode: Mode = "hybrid",
        rerank: bool = False,
    ) -> SearchResult:
        """The k best chunks by falling score, ties by rising chunk id, and the number of the index generation.

        Args:
            collection: search this one alone; documents: search these ids alone.
            mode: ``dense`` (cosine), ``sparse`` (BM25), ``hybrid`` (both, on a fixed scale). A query that the embedder
                cannot read is searched for in mode sparse, and the result's ``note`` says so.
            rerank: let the ranker read the best; a score is then the probability that the chunk answers the query.
        Errors: InvalidRequest, NotFound (collection or document), EmbedderMismatch, UnknownRanker.
        """
        return self.submit_search(
            query, k, collection=collection, documents=documents, owner=owner, mode=mode, rerank=rerank
        ).result()

    @property
    def ranker_name(self) -> str:
        """As the ranker was named, or the one that suits the embedder; nothing but the embedder is loaded."""
        return self._ranker_name or suiting(self.embedder)

    @property
    def ranker(self) -> SentenceRanker:
        """What reranks, loaded when it is first asked for. Error: UnknownRanker."""
        with self._ranker_lock:
            if not hasattr(self, "_ranker"):
                self._ranker = load_ranker(self._ranker_name, self.embedder)
            return self._ranker

    def submit_search(
        self,
        query: str,
        k: int = 10,
        *,
        collection: str | None = None,
        documents: Sequence[str] | None = None,
        owner: str = DEFAULT_OWNER,
        mode: Mode = "hybrid",
        rerank: bool = False,
    ) -> Future[SearchResult]:
        """``search`` without waiting: searches that are submitted meanwhile run together. Error: InvalidRequest."""
        check_query(query, k, mode)
        wanted = tuple(documents) if documents is not None else None
        count = max(k, CANDIDATES) if rerank else k
        found = self._searches.submit(SearchRequest(query, count, mode, owner, collection, wanted))
        return self._rerankings.submit((query, k, found)) if rerank else found

    def _rerank(self, asked: Sequence[tuple[str, int, Future[SearchResult]]]) -> list[SearchResult | Exception]:
        results: list[SearchResult | Exception] = []
        for query, k, found in asked:
            try:
                result = found.result()
                results.append(result._replace(hits=reranked(self.ranker, query, result.hits)[:k]))
            except RetrievalError as error:
                results.append(error)
        return results

    def retriever(
        self,
        *,
        collection: str | None = None,
        documents: Sequence[str] | None = None,
        owner: str = DEFAULT_OWNER,
        mode: Mode = "hybrid",
        longest_query: int = 0,
    ) -> SnapshotRetriever:
        """The search of this moment, for a loop that retrieves while it writes (``speculation``): what is ingested,
        deleted or built later does not change what it finds. ``hits`` reads the chunks' text.

        longest_query: tokens that the queries are going to have.
        Errors: NotFound (collection or document), EmbedderMismatch, InvalidRequest (the embedder reads fewer tokens).
        """
        if mode != "sparse":
            check_query_length(longest_query, self.embedder)
        wanted = tuple(documents) if documents is not None else None
        snapshot = self._upkeep.index().refresh()
        scope = self._searcher.scope(snapshot, SearchRequest("", 1, mode, owner, collection, wanted))
        return SnapshotRetriever(
            snapshot,
            scope,
            mode,
            lambda texts: np.stack([self._queries(text) for text in texts]),
            lambda text: newest_tokens(text, self.embedder),
            lambda text: cosine_weight(self.embedder, text),
            self._searcher.corpus(snapshot, owner),
        )

    # -- index

    def build_index(self) -> IndexReport:
        """Write a new generation where anything changed since the last. Errors: StoreBusy, EmbedderMismatch."""
        return self._upkeep.index().build()

    def compact(self) -> IndexReport:
        """Drop tombstones and all that nothing names any more. Errors: StoreBusy, EmbedderMismatch."""
        report = self._upkeep.index().build()
        self.jobs.sweep()
        self._erasure.tidy()
        return report

    def rebuild(self, progress: ProgressCallback | None = None) -> IndexReport:
        """Build the index anew from SQL; after a change of embedder, embed everything anew first.

        The new vectors and the new generation are made beside the old ones, which serve other processes until all
        is ready. Interrupted, it goes on where it was when called again. Error: StoreBusy.
        """
        return self._upkeep.rebuild(progress)

    def verify_index(self) -> VerifyReport:
        """Check every hash of the index and of the files, every chunk against its text, and the index against SQL.

        Error: EmbedderMismatch.
        """
        snapshot = self._upkeep.index().refresh()
        return verify(self.database, self.home / "index", self._originals, snapshot, self._upkeep.embedder_id())

    def traces(self, name: str, data: bytes) -> list[Trace]:
        """What the home holds of a file that no document is of any longer; see ``retrieval.traces``."""
        tokenizer = self._upkeep.tokenizer
        forms = partial(forms_of, tokenizer=tokenizer)
        needles = needles_of(self._for_traces(name, data), data, tokenizer)
        with self.database.read() as connection:
            kept = [row.sha256 for row in connection.execute(store.FILES)]
            needles = needles.without(store.contents(connection, forms)).without(map(self._originals.read, kept))
        return look_through(self.home, needles, frozenset(self.home / file_name(sha256) for sha256 in kept))

    def _for_traces(self, name: str, data: bytes) -> Prepared | None:
        """What a file was made into when it was ingested; None for one that cannot be read."""
        try:
            return prepare(name, data, self._sandbox, self.embedder, self.chunking, ProgressMeter(name))
        except UnreadableFile:
            return None

    def set_tokenizer(self, tokenizer: CorpusTokenizer) -> None:
        """From the next generation on, keep a token store of the corpus for this tokenizer."""
        self._upkeep.set_tokenizer(tokenizer)

    def token_store(self, owner: str = DEFAULT_OWNER) -> TokenStore | None:
        """The token store over the owner's live documents; None where the present generation has none of the
        tokenizer that was set."""
        return self._upkeep.token_store(owner)

    def stats(self, owner: str | None = None) -> LibraryStats:
        """Totals of one owner, or of all; the state of the index."""
        index = self._upkeep.index()
        snapshot = index.refresh()
        with self.database.read() as connection:
            totals = store.totals(connection, owner)
        return LibraryStats(
            **totals,
            generation=snapshot.generation.number if snapshot.generation else 0,
            indexed_chunks=len(snapshot.generation.ids) if snapshot.generation else 0,
            pending=snapshot.pending,
            tombstones=snapshot.tombstones,
            journal_seq=snapshot.seq,
            embedder=self.embedder.fingerprint,
            database=self.database.name,
            notes=list(index.notes),
        )

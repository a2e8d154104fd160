"""The kNN datastores of a data folder: built from an owner's documents, found again for a question, kept in step.

A datastore is named by its scope (owner, collection, model) and by the state of the documents that it was made of. One
that holds a document which is gone is refused, so that nothing deleted speaks on; documents that came later are only
missing from it, which the figures of an answer tell.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING

from retrieval.errors import DatastoreMismatch, NotFound
from retrieval.index.dense import FLAT_UP_TO
from retrieval.iterative.strides import Experiences
from retrieval.knn.decoding import KnnOptions
from retrieval.knn.search import ExactSearch, ListSearch, Search
from retrieval.knn.store import REBUILD, Datastore, StoreBuilder, StoreIdentity, read_manifest, sweep
from retrieval.library import Library
from retrieval.types import DocumentKey
from service.answering.knn import KnnRequest, build, identity
from service.answering.retention import KNN_FOLDER

if TYPE_CHECKING:
    from service.engine.async_engine import AsyncEngine
    from service.engine.loading.checkpoint import LoadedModel


@dataclass(frozen=True)
class DatastoreReport:
    """What `folio index build --knn` tells. ``built``: whether anything had changed since the last."""

    name: str
    entries: int
    documents: int
    lists: int
    bytes: int
    seconds: float
    built: bool


class Datastores:
    """Thread-safe."""

    def __init__(self, library: Library) -> None:
        self._library = library
        self._folder = library.home / KNN_FOLDER
        self._opening = threading.Lock()
        self._open: dict[str, Datastore] = {}
        self._searches: dict[tuple[str, int | None], Search] = {}
        self._experiences = Experiences()

    def build(
        self,
        engine: AsyncEngine,
        owner: str,
        collection: str | None,
        lists: int | None = None,
    ) -> DatastoreReport:
        """Make the datastore of a collection (None: of all documents), or go on with one that was interrupted.

        Args:
            lists: inverted lists for approximate search; 0 for none, None for as many as pay.

        Raises:
            InvalidRequest: there are no documents. StoreBusy: another process is building it.
        """
        began = time.perf_counter()
        model = identity(engine.engine.loaded)
        documents = self._documents(owner, collection)
        folder = self._folder / f"{_scope(model, owner, collection)}-{_state(documents, lists)}"
        built = not folder.is_dir()
        if built:
            builder = StoreBuilder(folder, model)
            try:
                for document in documents:
                    text = self._library.text(document[0], owner=owner, version=document[1])
                    build(engine, [(document, text)], builder)
                builder.finish(_lists(builder.entries) if lists is None else lists)
            finally:
                builder.close()
        sweep(self._folder, folder.name.partition("-")[0], [folder.name])
        manifest = read_manifest(folder)
        return DatastoreReport(
            folder.name,
            manifest["entries"],
            len(documents),
            manifest["lists"],
            sum(file["bytes"] for file in manifest["files"].values()),
            time.perf_counter() - began,
            built,
        )

    async def prepare(self, loaded: LoadedModel, owner: str, collection: str | None, options: KnnOptions) -> KnnRequest:
        """The datastore for a question, opened and checked; it serves the answer to its end.

        Raises:
            retrieval's NotFound: there is none. DatastoreMismatch: it holds documents that are gone.
            IndexCorrupt: its files are damaged. InvalidRequest: it has no lists to search approximately.
        """
        return await asyncio.to_thread(self._find, identity(loaded), owner, collection, options)

    def _find(self, model: StoreIdentity, owner: str, collection: str | None, options: KnnOptions) -> KnnRequest:
        scope = _scope(model, owner, collection)
        found = max(self._folder.glob(f"{scope}-*"), key=lambda path: path.stat().st_mtime, default=None)
        if found is None:
            of = f"the collection {collection!r}" if collection else "all documents together"
            raise NotFound(f"there is no kNN datastore of {of} for this model; build it with `folio index build --knn`")
        with self._opening:
            store = self._opened(found)
            live = set(self._documents(owner, collection))
            gone = set(store.documents) - live
            if gone:
                raise DatastoreMismatch(
                    f"{len(gone)} of the documents in the kNN datastore were deleted or changed; {REBUILD}"
                )
            behind = len(live - set(store.documents))
            experience = self._experiences.of((found.name, replace(options, stride=None)))
            return KnnRequest(self._search(store, options.probes), options, behind, experience)

    def _opened(self, folder: Path) -> Datastore:
        if folder.name not in self._open:
            scope = folder.name.partition("-")[0]
            for old in [name for name in self._open if name.startswith(scope)]:
                del self._open[old]
                self._searches = {key: search for key, search in self._searches.items() if key[0] != old}
            self._open[folder.name] = Datastore.open(folder)
        return self._open[folder.name]

    def _search(self, store: Datastore, probes: int | None) -> Search:
        key = store.folder.name, probes
        if key not in self._searches:
            self._searches[key] = ExactSearch(store) if probes is None else ListSearch(store, probes)
        return self._searches[key]

    def _documents(self, owner: str, collection: str | None) -> list[DocumentKey]:
        """The live documents, in order."""
        found = self._library.documents(collection, owner)
        return sorted((document.id, document.version) for document in found if document.readable)


def _scope(model: StoreIdentity, owner: str, collection: str | None) -> str:
    return _digest([owner, collection, asdict(model)])


def _state(documents: Sequence[DocumentKey], lists: int | None) -> str:
    return _digest([documents, lists])


def _digest(value: object) -> str:
    return blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=8).hexdigest()


def _lists(entries: int) -> int:
    """None while a scan is fast; then about the square root, of which a search looks at some."""
    return 0 if entries <= FLAT_UP_TO else 1 << round(entries**0.5).bit_length() - 1

"""Reading documents back: what is there, its text, its pages, its file."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from retrieval.checks import check_span
from retrieval.errors import InvalidRequest, NotFound, StoreUnavailable
from retrieval.parsing import MEDIA_TYPES, Limits, page_at
from retrieval.parsing.document import ParsedDocument
from retrieval.parsing.sandbox import Sandbox
from retrieval.store import documents as store
from retrieval.store.blobs import open_blobs
from retrieval.store.database import Database
from retrieval.store.originals import Originals
from retrieval.types import DEFAULT_OWNER, Box, Collection, Document, Hit, Order, Page


def make_home(home: str | os.PathLike[str]) -> Path:
    """The data folder, made where absent. Error: StoreUnavailable."""
    folder = Path(home).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreUnavailable(f"cannot make the data folder {folder}: {error.strerror}; choose another") from error
    return folder


class Shelf:
    """The documents of a library, to an owner who may see their own alone; ``open_shelf`` makes one by itself."""

    def __init__(self, database: Database, originals: Originals, viewer: Sandbox) -> None:
        """viewer: apart from the ingester's, so that nobody waits for a book to be parsed before a page is shown."""
        self.database = database
        self._originals = originals
        self._viewer = viewer

    def close(self) -> None:
        """Stop the viewer, and let go of the database."""
        self._viewer.close()
        self.database.close()

    def read(self, data: bytes, name: str) -> ParsedDocument:
        """What stands in a file that does not become a document here. Errors: UnreadableFile and its kinds."""
        return self._viewer.parse(data, name)

    def documents(
        self,
        collection: str | None = None,
        owner: str = DEFAULT_OWNER,
        *,
        limit: int | None = None,
        after: str | None = None,
        search: str = "",
        order: Order = "id",
    ) -> list[Document]:
        """Documents by id, by name or the newest first, failed ones included.

        Args:
            after: the last id of the page before (a cursor). search: what a name holds, whatever the case.
        """
        with self.database.read() as connection:
            return store.listing(connection, owner, collection, limit, after, search, order)

    def collections(self, owner: str = DEFAULT_OWNER) -> list[Collection]:
        with self.database.read() as connection:
            return store.list_collections(connection, owner)

    def document(self, document: str, owner: str = DEFAULT_OWNER) -> Document:
        """Error: NotFound."""
        with self.database.read() as connection:
            return store.get(connection, owner, document)

    def existing(self, documents: Iterable[str]) -> set[str]:
        """Those of the ids that name a document of anybody."""
        with self.database.read() as connection:
            return store.existing(connection, documents)

    def find(self, reference: str, owner: str = DEFAULT_OWNER) -> Document:
        """The document of this id, else of this name, else whose path ends in it.

        Errors: NotFound; InvalidRequest where there are several.
        """
        with self.database.read() as connection:
            named = store.named(connection, owner, reference)
        if len(named) > 1:
            where = ", ".join(f"{document.id} in {document.collection}" for document in named)
            raise InvalidRequest(f"{reference} is the name of several documents ({where}); give the id of one")
        return named[0] if named else self.document(reference, owner)

    def text(
        self,
        document: str,
        start: int = 0,
        end: int | None = None,
        owner: str = DEFAULT_OWNER,
        *,
        version: int | None = None,
    ) -> str:
        """Characters ``start:end`` of the stored text, of the present version by default. Error: NotFound."""
        check_span(start, end)
        with self.database.read() as connection:
            return store.read_text(connection, owner, document, start, end, version)

    def version_of(self, document: str, sha256: str, owner: str = DEFAULT_OWNER) -> int:
        """The newest version of a document that was read from the file of this hash. Error: NotFound."""
        with self.database.read() as connection:
            return store.version_of(connection, owner, document, sha256)

    def pages(self, document: str, owner: str = DEFAULT_OWNER, *, version: int | None = None) -> list[Page]:
        """The pages in order (one for a file without pages). Error: NotFound."""
        with self.database.read() as connection:
            return store.read_pages(connection, owner, document, version)

    def page_of(self, document: str, offset: int, owner: str = DEFAULT_OWNER, *, version: int | None = None) -> int:
        """The number of the page on which the character at ``offset`` is. Error: NotFound."""
        return page_at(self.pages(document, owner, version=version), offset)

    def place_of(
        self, document: str, start: int, end: int, owner: str = DEFAULT_OWNER, *, version: int | None = None
    ) -> str:
        """Where in the file the characters ``start:end`` stand, for people: "Sales, Zone EUR, B7", "page 3"; "" for a
        file without places. Error: NotFound."""
        check_span(start, end)
        with self.database.read() as connection:
            return store.read_place(connection, owner, document, start, end, version)

    def chunks(self, document: str, owner: str = DEFAULT_OWNER) -> list[Hit]:
        """All chunks of a document in order, with score 0. Error: NotFound."""
        with self.database.read() as connection:
            return store.read_chunks(connection, owner, document)

    def hits(self, ids: Sequence[int], owner: str = DEFAULT_OWNER) -> list[Hit]:
        """The chunks of these ids with score 0, in their order; those that are gone, or another's, are left out."""
        with self.database.read() as connection:
            found = store.read_hits(connection, owner, ids)
        return [found[chunk] for chunk in ids if chunk in found]

    def original(self, document: str, owner: str = DEFAULT_OWNER) -> bytes:
        """The file as it was ingested. Error: NotFound."""
        return self._originals.read(self.document(document, owner).sha256)

    def boxes(self, document: str, start: int, end: int, owner: str = DEFAULT_OWNER) -> list[Box]:
        """Where the characters ``start:end`` stand on the pages of a PDF; nothing for other files. Error: NotFound."""
        check_span(start, end)
        found = self.document(document, owner)
        if found.media_type != MEDIA_TYPES["pdf"]:
            return []
        pages = [page for page in self.pages(document, owner) if page.start < end and start < page.end]
        if not pages:
            return []
        first = pages[0].start
        text = self.text(document, first, pages[-1].end, owner)
        moved = [Page(page.number, page.start - first, page.end - first) for page in pages]
        data = self.original(document, owner)
        return self._viewer.boxes(data, found.name, moved, text, start - first, end - first)

    def page_image(self, document: str, number: int, owner: str = DEFAULT_OWNER, *, width: int = 1000) -> bytes:
        """PNG of a page of a PDF, ``width`` pixels wide. Error: NotFound (other files have no images)."""
        found = self.document(document, owner)
        if found.media_type != MEDIA_TYPES["pdf"]:
            raise NotFound(f"{found.name} is no PDF: it has text, but no pages to show")
        return self._viewer.page_image(self.original(document, owner), found.name, number, width)


def open_shelf(home: str | os.PathLike[str], database_url: str | None = None, *, blobs: str | None = None) -> Shelf:
    """The documents of the library in ``home``, without its index and embedder: in a fraction of the time that
    ``Library.open`` takes, whose arguments these are. Error: StoreUnavailable."""
    folder = make_home(home)
    kept = open_blobs(folder, blobs)
    return Shelf(Database.open(folder, database_url), Originals(kept), Sandbox(Limits()))

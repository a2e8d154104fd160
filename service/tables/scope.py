"""Which documents a table has rows for."""

from __future__ import annotations

from retrieval.store.shelf import Shelf
from retrieval.types import Document
from service.errors import NotFound
from service.tables.store import MOST_ROWS, TableSpec


def documents_of(shelf: Shelf, spec: TableSpec, owner: str) -> list[Document]:
    """The readable documents by name; one more than a table may have where there are too many.

    Raises NotFound: a document or the collection is not there, or another's.
    """
    if spec.documents:
        found = [shelf.document(one, owner) for one in dict.fromkeys(spec.documents)]
    else:
        found = shelf.documents(spec.collection, owner, limit=MOST_ROWS + 1)
        known = {collection.name for collection in shelf.collections(owner)} if not found else set()
        if spec.collection is not None and not found and spec.collection not in known:
            raise NotFound(f"There is no collection {spec.collection[:100]!r}.", param="collection")
    return sorted((one for one in found if one.readable), key=lambda one: (one.name, one.id))

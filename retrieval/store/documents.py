"""Operations on documents. Every one filters by owner in SQL; what belongs to somebody else does not exist."""

from __future__ import annotations

import datetime as dt
import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import sqlalchemy as sa

from retrieval.common.failpoints import failpoint
from retrieval.errors import NotFound
from retrieval.parsing.chunking import Chunk
from retrieval.parsing.document import ParsedDocument
from retrieval.parsing.places import around, pack, place_of, unpack
from retrieval.store.tables import (
    answer_rows,
    chunks,
    collections,
    conversation_turns,
    conversations,
    documents,
    embeddings,
    idempotency,
    journal,
    now,
    pages,
    responses,
    versions,
    watch_changes,
    watches,
)
from retrieval.types import Collection, Document, Hit, Order, Page

READY = "ready"
PARTIAL = "partial"
FAILED = "failed"

_NEWEST = (documents.c.updated_at, True)

# Part of every search, so put together once. Two statements that look up primary keys, because a planner that is given
# their join and fifty ids may rather go through all chunks of the owner.
_CHUNKS_BY_ID = sa.select(chunks).where(
    chunks.c.id.in_(sa.bindparam("ids", expanding=True)), chunks.c.owner == sa.bindparam("owner")
)
_LIVE_BY_ID = sa.select(documents.c.id, documents.c.version, documents.c.name, documents.c.sha256).where(
    documents.c.id.in_(sa.bindparam("ids", expanding=True)),
    documents.c.owner == sa.bindparam("owner"),
    documents.c.status != FAILED,
)
_LIVE_CHUNKS = (
    sa.select(chunks, documents.c.name, documents.c.sha256)
    .join(documents, sa.and_(documents.c.id == chunks.c.document_id, documents.c.version == chunks.c.version))
    .where(documents.c.owner == sa.bindparam("owner"), documents.c.status != FAILED)
)


@dataclass(frozen=True)
class NewVersion:
    """Everything that one commit writes of a document.

    Attributes:
        vectors: float32[len(chunks), d].
        history: versions before this one, oldest first; what was there already is older still.
    """

    owner: str
    collection: str
    name: str
    sha256: str
    size: int
    parsed: ParsedDocument
    chunks: Sequence[Chunk]
    vectors: np.ndarray
    embedder_id: int
    history: Sequence[OldVersion] = ()


@dataclass(frozen=True)
class OldVersion:
    """A version that is kept to be read, and is not searched.

    Attributes:
        data: its file, where that is yet to be stored.
    """

    sha256: str
    size: int
    parsed: ParsedDocument
    created_at: dt.datetime
    data: bytes = b""


def new_id() -> str:
    return secrets.token_hex(6)


def find_same_content(connection: sa.Connection, owner: str, collection: str, sha256: str) -> Document | None:
    """A ready document of the collection with exactly these bytes."""
    row = connection.execute(
        _select_documents(owner)
        .where(documents.c.sha256 == sha256, documents.c.status != FAILED, collections.c.name == collection)
        .limit(1)
    ).one_or_none()
    return _document(row) if row else None


def commit_version(connection: sa.Connection, new: NewVersion) -> tuple[str, int]:
    """Write a document, or a new version of it, with its chunks, vectors and journal row. Returns (id, version)."""
    collection_id = _ensure_collection(connection, new.owner, new.collection)
    known = connection.execute(
        sa.select(documents.c.id, documents.c.version).where(
            documents.c.collection_id == collection_id, documents.c.name == new.name
        )
    ).one_or_none()
    document, older = (known.id, known.version) if known else (new_id(), 0)
    version = older + len(new.history) + 1
    values = {
        "owner": new.owner,
        "collection_id": collection_id,
        "name": new.name,
        "version": version,
        "sha256": new.sha256,
        "media_type": new.parsed.media_type,
        "size": new.size,
        "status": PARTIAL if new.parsed.partial else READY,
        "pages": len(new.parsed.pages),
        "chunks": len(new.chunks),
        "chars": len(new.parsed.text),
        "error": None,
        "notes": new.parsed.notes,
        "updated_at": now(),
    }
    if known:
        _remove_chunks(connection, document)
        connection.execute(sa.update(documents).where(documents.c.id == document).values(**values))
    else:
        connection.execute(sa.insert(documents).values(id=document, created_at=now(), **values))
    failpoint("ingest.document")
    for number, old in enumerate(new.history, older + 1):
        _insert_text(connection, document, number, old)
    _insert_text(connection, document, version, OldVersion(new.sha256, new.size, new.parsed, now()))
    failpoint("ingest.text")
    _insert_chunks(connection, document, version, new)
    failpoint("ingest.chunks")
    _write_journal(connection, "add", document, version, new.owner, len(new.chunks))
    failpoint("ingest.journal")
    return document, version


def record_failure(
    connection: sa.Connection, owner: str, collection: str, name: str, sha256: str, size: int, error: str
) -> str | None:
    """Note a file that could not be read, unless a good version of it is there. Returns the document's id."""
    collection_id = _ensure_collection(connection, owner, collection)
    known = connection.execute(
        sa.select(documents.c.id, documents.c.status).where(
            documents.c.collection_id == collection_id, documents.c.name == name
        )
    ).one_or_none()
    if known and known.status != FAILED:
        return str(known.id)
    values = {"sha256": sha256, "size": size, "error": error, "updated_at": now()}
    if known:
        connection.execute(sa.update(documents).where(documents.c.id == known.id).values(**values))
        return str(known.id)
    document = new_id()
    connection.execute(
        sa.insert(documents).values(
            id=document,
            owner=owner,
            collection_id=collection_id,
            name=name,
            version=0,
            media_type="application/octet-stream",
            status=FAILED,
            pages=0,
            chunks=0,
            chars=0,
            created_at=now(),
            **values,
        )
    )
    return document


def delete(connection: sa.Connection, owner: str, document: str) -> Document:
    """Remove a document, all its versions, chunks and vectors. Error: NotFound."""
    found = get(connection, owner, document)
    _remove_chunks(connection, document)
    failpoint("delete.chunks")
    for table in (pages, versions):
        connection.execute(sa.delete(table).where(table.c.document_id == document))
    connection.execute(sa.delete(documents).where(documents.c.id == document))
    failpoint("delete.document")
    _write_journal(connection, "delete", document, found.version, owner, found.chunks)
    # answers that are kept for repeated requests may quote it, and those under way, which then are not kept
    quoting = idempotency.c.owner == owner, idempotency.c.route == "answer"
    connection.execute(sa.delete(idempotency).where(*quoting))
    _forget_responses(connection, owner)
    connection.execute(sa.delete(answer_rows).where(answer_rows.c.document_id == document))
    _forget_watched(connection, owner, document)
    _forget_turns(connection, owner, document)
    failpoint("delete.journal")
    return found


def get(connection: sa.Connection, owner: str, document: str) -> Document:
    """Error: NotFound."""
    row = connection.execute(_select_documents(owner).where(documents.c.id == document)).one_or_none()
    if row is None:
        raise NotFound(f"there is no document {document!r}; list the documents to see what there is")
    return _document(row)


def named(connection: sa.Connection, owner: str, reference: str) -> list[Document]:
    """The document of this id alone, else those of this name, else those whose path ends in it."""
    by = documents.c.id == reference, documents.c.name == reference
    by_path = documents.c.name.endswith(f"/{reference}", autoescape=True)
    found = [_document(row) for row in connection.execute(_select_documents(owner).where(sa.or_(*by, by_path)))]
    for exact in ("id", "name"):
        if chosen := [document for document in found if getattr(document, exact) == reference]:
            return chosen
    return found


def listing(
    connection: sa.Connection,
    owner: str,
    collection: str | None,
    limit: int | None,
    after: str | None,
    search: str = "",
    order: Order = "id",
) -> list[Document]:
    """Documents in an order, behind the document ``after``, which is a stable cursor where the order is by id.

    search: what a name holds, whatever the case. Error: NotFound (``after`` is gone, in another order).
    """
    key, falling = {"id": (documents.c.id, False), "name": (documents.c.name, False), "newest": _NEWEST}[order]
    query = _select_documents(owner).order_by(key.desc() if falling else key, documents.c.id)
    if collection is not None:
        query = query.where(collections.c.name == collection)
    if search:
        name = documents.c.name  # whose case SQLite folds in ASCII alone
        query = query.where(
            sa.or_(
                name.contains(search, autoescape=True),
                sa.func.lower(name).contains(search.lower(), autoescape=True),
            )
        )
    if after is not None and order == "id":
        query = query.where(documents.c.id > after)
    elif after is not None:
        last = get(connection, owner, after)
        at = last.updated_at if order == "newest" else last.name
        beyond = key < at if falling else key > at
        query = query.where(sa.or_(beyond, sa.and_(key == at, documents.c.id > after)))
    if limit is not None:
        query = query.limit(limit)
    return [_document(row) for row in connection.execute(query)]


def ids_in_scope(
    connection: sa.Connection, owner: str, collection: str | None, wanted: Sequence[str] | None
) -> set[str]:
    """Ids of the ready documents of an owner, of a collection, among those wanted. Error: NotFound."""
    query = sa.select(documents.c.id).where(documents.c.owner == owner, documents.c.status != FAILED)
    if collection is not None:
        query = query.where(documents.c.collection_id == _collection_id(connection, owner, collection))
    found = set(connection.execute(query).scalars())
    if wanted is None:
        return found
    for document in wanted:
        if document not in found:
            get(connection, owner, document)  # a foreign or unknown one is NotFound
    return found & set(wanted)


def read_text(
    connection: sa.Connection, owner: str, document: str, start: int, end: int | None, version: int | None
) -> str:
    """Characters ``start:end`` of the stored text of a version (the present one by default). Error: NotFound."""
    length = sa.func.length(versions.c.text) if end is None else max(end - start, 0)
    text = connection.execute(
        sa.select(sa.func.substr(versions.c.text, start + 1, length))
        .join(documents, documents.c.id == versions.c.document_id)
        .where(documents.c.owner == owner, documents.c.id == document)
        .where(versions.c.version == (documents.c.version if version is None else version))
    ).scalar_one_or_none()
    if text is None:
        known = get(connection, owner, document)
        raise NotFound(
            f"{known.name} has no text: {known.error}"
            if known.status == FAILED
            else f"{known.name} has no version {version}; the present one is {known.version}"
        )
    return str(text)


def version_of(connection: sa.Connection, owner: str, document: str, sha256: str) -> int:
    """The newest version that was read from the file of this hash. Error: NotFound."""
    known = get(connection, owner, document)
    found = connection.execute(
        sa.select(sa.func.max(versions.c.version)).where(
            versions.c.document_id == document, versions.c.sha256 == sha256
        )
    ).scalar()
    if found is None:
        raise NotFound(f"{known.name} has no version of that file; the present one is {known.version}")
    return int(found)


def read_pages(connection: sa.Connection, owner: str, document: str, version: int | None) -> list[Page]:
    """Error: NotFound."""
    found = get(connection, owner, document)
    return _pages(connection, document, version or found.version)


def read_parsed(connection: sa.Connection, owner: str, document: str) -> ParsedDocument:
    """All that was read from the file of the present version. Error: NotFound."""
    found = get(connection, owner, document)
    row = connection.execute(_of_version(document, found.version)).one()
    return _parsed(row, _pages(connection, document, found.version))


def read_place(connection: sa.Connection, owner: str, document: str, start: int, end: int, version: int | None) -> str:
    """Where in the file the characters ``start:end`` stand, for people. Error: NotFound."""
    found = get(connection, owner, document)
    number = version or found.version
    packed = connection.execute(_of_version(document, number, versions.c.places)).scalar_one_or_none()
    return place_of(around(packed, start, end) if packed else [], _pages(connection, document, number), start, end)


def _forget_responses(connection: sa.Connection, owner: str) -> None:
    """Remove kept responses that were made from an owner's documents, and those that went on from them."""
    mine = responses.c.owner == owner
    from_documents = sa.cast(responses.c.body, sa.Text).contains('"folio": {', autoescape=True)
    gone = set(connection.execute(sa.select(responses.c.id).where(mine, from_documents)).scalars())
    while gone:
        connection.execute(sa.delete(responses).where(mine, responses.c.id.in_(gone)))
        gone = set(
            connection.execute(sa.select(responses.c.id).where(mine, responses.c.previous_id.in_(gone))).scalars()
        )


def _forget_watched(connection: sa.Connection, owner: str, document: str) -> None:
    """Remove answers of watched questions, and changes of them, that were made from a document."""
    mine = sa.select(watches.c.id).where(watches.c.owner == owner)
    columns = (watch_changes.c[name] for name in ("documents", "before", "after", "difference"))
    made_of_it = sa.or_(*(_names(column, document) for column in columns))
    connection.execute(sa.delete(watch_changes).where(watch_changes.c.watch_id.in_(mine), made_of_it))
    forgotten = watches.c.owner == owner, _names(watches.c.state, document)
    connection.execute(sa.update(watches).where(*forgotten).values(state=None))


def _forget_turns(connection: sa.Connection, owner: str, document: str) -> None:
    """Remove turns of kept conversations that were made from a document, and those that followed them."""
    turns = conversation_turns
    mine = sa.select(conversations.c.id).where(conversations.c.owner == owner)
    first = (
        sa.select(turns.c.conversation_id, sa.func.min(turns.c.ordinal).label("ordinal"))
        .where(turns.c.conversation_id.in_(mine), _names(turns.c.content, document))
        .group_by(turns.c.conversation_id)
    )
    for conversation, ordinal in connection.execute(first).all():
        cut_conversation(connection, conversation, ordinal)


def cut_conversation(connection: sa.Connection, conversation: str, ordinal: int) -> None:
    """Remove the turns of a conversation from one on."""
    turns = conversation_turns
    gone = turns.c.conversation_id == conversation, turns.c.ordinal >= ordinal
    length = sa.func.coalesce(sa.func.sum(sa.func.length(sa.cast(turns.c.content, sa.Text))), 0)
    less = connection.execute(sa.select(length).where(*gone)).scalar_one()
    connection.execute(sa.delete(turns).where(*gone))
    of_it = sa.update(conversations).where(conversations.c.id == conversation)
    connection.execute(of_it.values(size=conversations.c.size - less))


def _names(column: sa.ColumnElement[Any], document: str) -> sa.ColumnElement[bool]:
    """Whether JSON holds the id of a document."""
    return sa.cast(column, sa.Text).contains(f'"{document}"', autoescape=True)


def _of_version(document: str, version: int, *columns: sa.Column[Any]) -> sa.Select[Any]:
    return sa.select(*(columns or (versions,))).where(versions.c.document_id == document, versions.c.version == version)


def _parsed(row: sa.Row, spans: list[Page]) -> ParsedDocument:  # type: ignore[type-arg]
    """Of a row of versions; tables served the chunks alone, and are not kept."""
    places = unpack(row.places) if row.places else []
    return ParsedDocument(row.text, spans, row.media_type, row.notes, places, unread_share=row.unread_share)


def _pages(connection: sa.Connection, document: str, version: int) -> list[Page]:
    rows = connection.execute(
        sa.select(pages.c.number, pages.c.start, pages.c.end)
        .where(pages.c.document_id == document, pages.c.version == version)
        .order_by(pages.c.number)
    )
    return [Page(row.number, row.start, row.end) for row in rows]


def read_chunks(connection: sa.Connection, owner: str, document: str) -> list[Hit]:
    """All chunks of a document in order, with score 0. Error: NotFound."""
    get(connection, owner, document)
    query = _LIVE_CHUNKS.where(chunks.c.document_id == document).order_by(chunks.c.ordinal)
    return [_hit(row, row, 0.0) for row in connection.execute(query, {"owner": owner})]


def read_hits(connection: sa.Connection, owner: str, ids: Iterable[int]) -> dict[int, Hit]:
    """By id, those of the chunks ``ids`` that are live and the owner's, with score 0."""
    rows = connection.execute(_CHUNKS_BY_ID, {"owner": owner, "ids": list(ids)}).all()
    theirs = {row.document_id for row in rows}
    live = {row.id: row for row in connection.execute(_LIVE_BY_ID, {"owner": owner, "ids": list(theirs)})}
    return {
        row.id: _hit(row, document, 0.0)
        for row in rows
        if (document := live.get(row.document_id)) is not None and document.version == row.version
    }


def list_collections(connection: sa.Connection, owner: str) -> list[Collection]:
    count = sa.func.count(documents.c.id)
    rows = connection.execute(
        sa.select(collections.c.name, collections.c.owner, collections.c.created_at, count.label("documents"))
        .outerjoin(documents, documents.c.collection_id == collections.c.id)
        .where(collections.c.owner == owner)
        .group_by(collections.c.id, collections.c.name, collections.c.owner, collections.c.created_at)
        .order_by(collections.c.name)
    )
    return [Collection(row.name, row.owner, row.documents, row.created_at) for row in rows]


def _select_documents(owner: str) -> sa.Select:  # type: ignore[type-arg]
    return (
        sa.select(documents, collections.c.name.label("collection"))
        .join(collections, collections.c.id == documents.c.collection_id)
        .where(documents.c.owner == owner)
    )


def _document(row: sa.Row) -> Document:  # type: ignore[type-arg]
    fields = dict(row._mapping)
    del fields["collection_id"]
    return Document(**fields)


def _hit(row: sa.Row, document: sa.Row, score: float) -> Hit:  # type: ignore[type-arg]
    """Of a row of chunks and one of its document."""
    return Hit(
        chunk_id=row.id,
        document=row.document_id,
        name=document.name,
        start=row.start,
        end=row.end,
        page=row.page,
        score=score,
        text=row.text,
        version=row.version,
        sha256=document.sha256,
        place=row.place,
        context=row.context,
    )


def _collection_id(connection: sa.Connection, owner: str, name: str) -> int:
    found = connection.execute(
        sa.select(collections.c.id).where(collections.c.owner == owner, collections.c.name == name)
    ).scalar_one_or_none()
    if found is None:
        raise NotFound(f"there is no collection {name!r}")
    return int(found)


def _ensure_collection(connection: sa.Connection, owner: str, name: str) -> int:
    try:
        return _collection_id(connection, owner, name)
    except NotFound:
        row = sa.insert(collections).values(owner=owner, name=name, created_at=now())
        return int(connection.execute(row.returning(collections.c.id)).scalar_one())


def _remove_chunks(connection: sa.Connection, document: str) -> None:
    theirs = sa.select(chunks.c.id).where(chunks.c.document_id == document)
    connection.execute(sa.delete(embeddings).where(embeddings.c.chunk_id.in_(theirs)))
    connection.execute(sa.delete(chunks).where(chunks.c.document_id == document))


def _insert_text(connection: sa.Connection, document: str, version: int, new: OldVersion) -> None:
    connection.execute(
        sa.insert(versions).values(
            document_id=document,
            version=version,
            sha256=new.sha256,
            media_type=new.parsed.media_type,
            size=new.size,
            text=new.parsed.text,
            notes=new.parsed.notes,
            places=pack(new.parsed.places) if new.parsed.places else None,
            unread_share=new.parsed.unread_share,
            created_at=new.created_at,
        )
    )
    connection.execute(
        sa.insert(pages),
        [
            {"document_id": document, "version": version, "number": page.number, "start": page.start, "end": page.end}
            for page in new.parsed.pages
        ],
    )


def _insert_chunks(connection: sa.Connection, document: str, version: int, new: NewVersion) -> None:
    connection.execute(
        sa.insert(chunks),
        [
            {
                "document_id": document,
                "version": version,
                "owner": new.owner,
                "ordinal": ordinal,
                "start": chunk.start,
                "end": chunk.end,
                "page": chunk.page,
                "tokens": chunk.tokens,
                "context": chunk.context,
                "place": place_of(new.parsed.places, new.parsed.pages, chunk.start, chunk.end),
                "text": chunk.text,
            }
            for ordinal, chunk in enumerate(new.chunks)
        ],
    )
    ids = connection.execute(
        sa.select(chunks.c.id)
        .where(chunks.c.document_id == document, chunks.c.version == version)
        .order_by(chunks.c.ordinal)
    ).scalars()
    vectors = np.ascontiguousarray(new.vectors, dtype="<f4")
    connection.execute(
        sa.insert(embeddings),
        [
            {"chunk_id": chunk_id, "embedder_id": new.embedder_id, "vector": vector.tobytes()}
            for chunk_id, vector in zip(ids, vectors, strict=True)
        ],
    )


def _write_journal(connection: sa.Connection, op: str, document: str, version: int, owner: str, count: int) -> None:
    connection.execute(
        sa.insert(journal).values(op=op, document_id=document, version=version, owner=owner, chunks=count, at=now())
    )


def older_versions(connection: sa.Connection, document: str, before: int) -> list[tuple[int, OldVersion]]:
    """(number, version) of those before a version, oldest first."""
    rows = connection.execute(
        sa.select(versions)
        .where(versions.c.document_id == document, versions.c.version < before)
        .order_by(versions.c.version)
    ).all()
    return [
        (
            row.version,
            OldVersion(
                row.sha256,
                row.size,
                _parsed(row, _pages(connection, document, row.version)),
                row.created_at,
            ),
        )
        for row in rows
    ]


FILES = sa.select(versions.c.sha256).distinct()
"""The files of all versions of all documents."""


def contents(connection: sa.Connection, forms: Callable[[str], Iterable[bytes]]) -> Iterator[bytes]:
    """The texts and vectors of all documents of all owners, as something may hold them; ``forms``: of a text."""
    for (text,) in connection.execute(sa.select(versions.c.text)):
        yield from forms(text)
    for (vector,) in connection.execute(sa.select(embeddings.c.vector)):
        yield vector


def existing(connection: sa.Connection, ids: Iterable[str]) -> set[str]:
    """Those of the ids that name a document of anybody."""
    wanted, found = list(ids), set[str]()
    for at in range(0, len(wanted), 1000):
        some = documents.c.id.in_(wanted[at : at + 1000])
        found.update(connection.execute(sa.select(documents.c.id).where(some)).scalars())
    return found


def version_hashes(connection: sa.Connection, document: str) -> set[str]:
    """SHA-256 of the file of every version."""
    return set(connection.execute(sa.select(versions.c.sha256).where(versions.c.document_id == document)).scalars())


def totals(connection: sa.Connection, owner: str | None) -> dict[str, int]:
    """Ready documents, their chunks, characters and bytes, of one owner or of all."""
    query = sa.select(
        sa.func.count(documents.c.id).label("documents"),
        sa.func.coalesce(sa.func.sum(documents.c.chunks), 0).label("chunks"),
        sa.func.coalesce(sa.func.sum(documents.c.chars), 0).label("chars"),
        sa.func.coalesce(sa.func.sum(documents.c.size), 0).label("bytes"),
    ).where(documents.c.status != FAILED)
    if owner is not None:
        query = query.where(documents.c.owner == owner)
    return {name: int(value) for name, value in connection.execute(query).one()._mapping.items()}

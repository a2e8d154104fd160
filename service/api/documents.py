"""`/v1/documents`: upload, list, show, read, delete."""

from __future__ import annotations

import asyncio
import base64
import binascii
import datetime as dt
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, File, Form, Header, Path, Query, Request, Response, UploadFile
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel
from sqlalchemy import Connection

from retrieval.types import Document, Order, Upload
from service.accounts.idempotency import Idempotency
from service.accounts.keys import Principal, note
from service.api.auth import Reader, Writer
from service.api.errors import problems
from service.api.health import Parts
from service.api.jobs import JobModel, job_data
from service.errors import InvalidRequest, TooLarge
from service.runtime import Runtime

router = APIRouter(tags=["documents"])

DocumentPath = Annotated[str, Path(max_length=64, pattern=r"^[A-Za-z0-9_-]+$")]
MAX_PAGE = 100
MAX_BOXED = 100_000
TEXT_SLICE = 1 << 21
"""Characters of a text that are held in memory at a time."""


class DocumentModel(BaseModel):
    """A document as it is now."""

    id: str
    name: str
    collection: str
    version: int
    sha256: str
    media_type: str
    size: int
    status: str
    pages: int
    chunks: int
    chars: int
    error: str | None
    notes: list[str]
    created_at: dt.datetime
    updated_at: dt.datetime


class DocumentPage(BaseModel):
    """Some documents; `next_cursor` is for the rest, None at the end."""

    documents: list[DocumentModel]
    next_cursor: str | None


class BoxModel(BaseModel):
    """A part of one printed line, in PDF points from the lower left corner of the page as it is displayed."""

    page: int
    left: float
    bottom: float
    right: float
    top: float
    page_width: float
    page_height: float


class BoxList(BaseModel):
    """One box a line, in reading order."""

    boxes: list[BoxModel]


@router.post("/v1/documents", status_code=202, response_model=JobModel, responses=problems(409))
async def upload(
    request: Request,
    runtime: Parts,
    principal: Writer,
    file: Annotated[list[UploadFile], File(description="A file or several; a name is a label, never a path.")],
    collection: Annotated[str, Form(min_length=1, max_length=255)] = "default",
    idempotency_key: Annotated[str | None, Header(max_length=255)] = None,
) -> Response:
    """Take files to be ingested: 202 and the job to watch. The same content is never stored twice."""
    strange = sorted(set(await request.form()) - {"file", "collection"})
    if strange:
        raise InvalidRequest(f"An upload has no field {strange[0][:100]!r}; it has file and collection.", param="form")
    items = [Upload(one.filename or "upload", await one.read()) for one in file]
    limit = int(runtime.settings.max_upload_mb * 2**20)
    size = sum(len(item.data) for item in items)
    if size > limit:
        what = "The file has" if len(items) == 1 else f"The {len(items)} files have"
        raise TooLarge(f"{what} {size / 2**20:.1f} MiB and the limit is {limit / 2**20:.1f} MiB.")

    async def submit() -> tuple[int, dict[str, Any]]:
        return 202, await asyncio.to_thread(_submit, runtime, principal, items, collection)

    if idempotency_key is None:
        status, body = await submit()
    else:
        idempotency: Idempotency = request.app.state.idempotency
        content = b"\0".join([collection.encode(), *(part for i in items for part in (i.name.encode(), i.data))])
        status, body = await idempotency.once(principal.owner, idempotency_key, "upload", content, submit)
    return JSONResponse(body, status, {"Location": f"/v1/jobs/{body['id']}"})


@router.get("/v1/documents", response_model=DocumentPage, responses=problems())
def list_documents(
    runtime: Parts,
    principal: Reader,
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = 50,
    cursor: Annotated[str | None, Query(max_length=200)] = None,
    collection: Annotated[str | None, Query(min_length=1, max_length=255)] = None,
    search: Annotated[
        str, Query(max_length=255, pattern=r"^[^\x00]*$", description="What a name holds, whatever the case.")
    ] = "",
    order: Annotated[Order, Query(description="By id, by name, or the newest first.")] = "id",
) -> dict[str, Any]:
    """The caller's documents, a page at a time."""
    after = _decode(cursor) if cursor else None
    found = runtime.library.documents(
        collection, principal.owner, limit=limit + 1, after=after, search=search, order=order
    )
    more = len(found) > limit
    return {
        "documents": [document_data(document) for document in found[:limit]],
        "next_cursor": _encode(found[limit - 1].id) if more else None,
    }


class CollectionModel(BaseModel):
    """A collection and how many documents it has."""

    name: str
    documents: int


class CollectionList(BaseModel):
    """By name."""

    collections: list[CollectionModel]


@router.get("/v1/collections", response_model=CollectionList, responses=problems())
def list_collections(runtime: Parts, principal: Reader) -> dict[str, Any]:
    """The caller's collections."""
    found = runtime.library.collections(principal.owner)
    return {"collections": [{"name": one.name, "documents": one.documents} for one in found]}


@router.get("/v1/documents/{document}", response_model=DocumentModel, responses=problems(404))
def show_document(document: DocumentPath, runtime: Parts, principal: Reader) -> dict[str, Any]:
    """One document."""
    return document_data(runtime.library.document(document, principal.owner))


@router.get(
    "/v1/documents/{document}/text",
    response_class=Response,
    responses={**problems(404), 200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
def read_text(
    document: DocumentPath,
    runtime: Parts,
    principal: Reader,
    start: Annotated[int, Query(ge=0, lt=2**53)] = 0,
    end: Annotated[int | None, Query(ge=0, lt=2**53)] = None,
) -> Response:
    """Characters `start:end` of the stored text, exactly; all of it by default."""
    if end is not None and end < start:
        raise InvalidRequest("A span needs start <= end.", param="end")
    library, owner = runtime.library, principal.owner
    found = library.document(document, owner)
    last = found.chars if end is None else min(end, found.chars)

    def piece(at: int) -> bytes:
        upto = max(at, min(at + TEXT_SLICE, last))
        return library.text(document, at, upto, owner, version=found.version).encode()

    media_type = "text/plain; charset=utf-8"
    if last - start <= TEXT_SLICE:
        return Response(piece(start), media_type=media_type)
    return StreamingResponse(map(piece, range(start, last, TEXT_SLICE)), media_type=media_type)


@router.get(
    "/v1/documents/{document}/pages/{number}/image",
    response_class=Response,
    responses={**problems(404, 415), 200: {"content": {"image/png": {"schema": {"type": "string"}}}}},
)
async def page_image(
    document: DocumentPath,
    number: Annotated[int, Path(ge=1, lt=2**31)],
    runtime: Parts,
    principal: Reader,
    width: Annotated[int, Query(ge=100, le=2000, description="In pixels.")] = 1000,
) -> Response:
    """A page of a PDF as an image."""
    owner, library = principal.owner, runtime.library
    image = await runtime.viewing.run(owner, lambda: library.page_image(document, number, owner, width=width))
    return Response(image, media_type="image/png", headers={"Cache-Control": "private, max-age=60"})


@router.get("/v1/documents/{document}/boxes", response_model=BoxList, responses=problems(404, 415))
async def read_boxes(
    document: DocumentPath,
    runtime: Parts,
    principal: Reader,
    start: Annotated[int, Query(ge=0, lt=2**53)],
    end: Annotated[int, Query(ge=0, lt=2**53)],
) -> dict[str, Any]:
    """Where the characters `start:end` of the stored text stand on the pages of a PDF; nothing for other files."""
    if end < start:
        raise InvalidRequest("A span needs start <= end.", param="end")
    if end - start > MAX_BOXED:
        raise InvalidRequest(f"Boxes are given for at most {MAX_BOXED} characters at a time.", param="end")
    owner, library = principal.owner, runtime.library
    boxes = await runtime.viewing.run(owner, lambda: library.boxes(document, start, end, owner))
    return {"boxes": [asdict(box) for box in boxes]}


@router.delete("/v1/documents/{document}", status_code=204, responses=problems(404))
def delete_document(document: DocumentPath, runtime: Parts, principal: Writer) -> Response:
    """Delete a document with its text, vectors and file; no search finds it from now on."""

    def audited(connection: Connection) -> None:
        note(connection, principal.owner, principal.key_id, "document.delete", document)

    runtime.library.delete(document, principal.owner, audited)
    runtime.forget(principal.owner)
    return Response(status_code=204)


def document_data(document: Document) -> dict[str, Any]:
    """A document as JSON."""
    names = DocumentModel.model_fields
    return {name: getattr(document, name) for name in names}


def _submit(runtime: Runtime, principal: Principal, items: list[Upload], collection: str) -> dict[str, Any]:
    job = runtime.jobs.submit(items, collection, principal.owner, principal.limits.get("storage_bytes"))
    if runtime.keys is not None:
        names = ", ".join(item.name for item in items)
        runtime.keys.record(principal.owner, principal.key_id, "document.upload", job.id, {"name": names[:255]})
    return job_data(job)


def _encode(document: str) -> str:
    return base64.urlsafe_b64encode(document.encode()).decode()


def _decode(cursor: str) -> str:
    try:
        return base64.b64decode(cursor.encode(), altchars=b"-_", validate=True).decode()
    except (binascii.Error, UnicodeError) as error:
        raise InvalidRequest("This cursor is not one that a listing gave.", param="cursor") from error

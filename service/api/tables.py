"""`/v1/tables`: the same questions asked of every document of a shelf."""

from __future__ import annotations

import asyncio
import datetime as dt
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from service.api.auth import Reader, Writer
from service.api.errors import problems
from service.api.health import Parts
from service.tables.columns import Column
from service.tables.export import MEDIA_TYPES, Format, exported, row_data, table_data
from service.tables.scope import documents_of
from service.tables.store import Status, TableSpec

router = APIRouter(tags=["tables"])

TablePath = Annotated[str, Path(max_length=64, pattern=r"^[A-Za-z0-9_-]+$")]


class TableModel(BaseModel):
    """A table without its rows."""

    id: str
    status: Status
    rows_total: int
    rows_done: int
    created_at: dt.datetime
    updated_at: dt.datetime
    columns: list[Column]
    collection: str | None
    documents: list[str]
    mode: str


class TableList(BaseModel):
    """The caller's tables, the newest first."""

    tables: list[TableModel]


class SourceModel(BaseModel):
    """Where in its document a cell stands."""

    start: int
    end: int
    page: int | None
    place: str
    cited_text: str
    support: str


class CellModel(BaseModel):
    """An answer that the document supports, or a blank that says why."""

    value: str | int | float | None
    blank: str | None = Field(description="Why there is no value.")
    answer: str = Field(description="As it was given, supported or not.")
    support: str
    mode: str
    citations: list[SourceModel]
    error: str | None


class RowModel(BaseModel):
    """A document's answers; `cells` is null before they are there."""

    row: int
    document: str
    name: str
    version: int
    cells: list[CellModel] | None


class RowPage(BaseModel):
    """Some rows; `next` is `after` of the rest, null at the end."""

    rows: list[RowModel]
    next: int | None


@router.post("/v1/tables", status_code=202, response_model=TableModel, responses=problems(404))
async def create_table(body: TableSpec, runtime: Parts, principal: Writer) -> Response:
    """Ask every document; 202 and the table to watch. Rows come one after another, and stay."""
    store, owner = runtime.tables, principal.owner
    documents = await asyncio.to_thread(documents_of, runtime.library, body, owner)
    head = await asyncio.to_thread(store.create, owner, body, documents)
    runtime.wake()
    return JSONResponse(table_data(head), 202, {"Location": f"/v1/tables/{head.id}"})


@router.get("/v1/tables", response_model=TableList, responses=problems())
def list_tables(runtime: Parts, principal: Reader) -> Response:
    """The caller's tables."""
    return JSONResponse({"tables": [table_data(head) for head in runtime.tables.all(principal.owner)]})


@router.get("/v1/tables/{table}", response_model=TableModel, responses=problems(404))
def show_table(table: TablePath, runtime: Parts, principal: Reader) -> dict[str, Any]:
    """One table, and how far it is."""
    return table_data(runtime.tables.get(principal.owner, table))


@router.get("/v1/tables/{table}/rows", response_model=RowPage, responses=problems(404))
def read_rows(
    table: TablePath,
    runtime: Parts,
    principal: Reader,
    after: Annotated[int, Query(ge=-1, lt=2**31, description="Rows behind this one.")] = -1,
    limit: Annotated[int, Query(ge=1, le=500)] = 100,
) -> Response:
    """Rows in their order."""
    found = runtime.tables.rows(principal.owner, table, after, limit + 1)
    shown = [row_data(row) for row in found[:limit]]
    # A response of its own is written here, in a thread, and not once more by the framework in its loop.
    return JSONResponse({"rows": shown, "next": found[limit - 1].ordinal if len(found) > limit else None})


@router.get(
    "/v1/tables/{table}/export",
    response_class=Response,
    responses={**problems(404), 200: {"content": {kind.partition(";")[0]: {} for kind in MEDIA_TYPES.values()}}},
)
async def export_table(
    table: TablePath,
    runtime: Parts,
    principal: Reader,
    form: Annotated[Format, Query(alias="format")] = "csv",
) -> Response:
    """The whole table as a file, finished or not."""
    store, owner = runtime.tables, principal.owner

    def export() -> bytes:
        return exported(store.get(owner, table), store.rows(owner, table), form)

    data = await runtime.exporting.run(owner, export)
    headers = {"Content-Disposition": f'attachment; filename="table-{table}.{form}"'}
    return Response(data, media_type=MEDIA_TYPES[form], headers=headers)


@router.post("/v1/tables/{table}/cancel", response_model=TableModel, responses=problems(404))
def cancel_table(table: TablePath, runtime: Parts, principal: Writer) -> dict[str, Any]:
    """Ask no more; what is answered stays."""
    return table_data(runtime.tables.cancel(principal.owner, table))


@router.post("/v1/tables/{table}/resume", response_model=TableModel, responses=problems(404))
async def resume_table(table: TablePath, runtime: Parts, principal: Writer) -> dict[str, Any]:
    """Go on with a cancelled table, and ask again where a question failed."""
    head = await asyncio.to_thread(runtime.tables.resume, principal.owner, table)
    runtime.wake()
    return table_data(head)


@router.delete("/v1/tables/{table}", status_code=204, responses=problems(404))
def delete_table(table: TablePath, runtime: Parts, principal: Writer) -> Response:
    """Forget a table with all its answers."""
    runtime.tables.delete(principal.owner, table)
    return Response(status_code=204)

"""`/v1/watches`: questions that are asked again when documents change."""

from __future__ import annotations

import asyncio
import datetime as dt
from typing import Annotated, Any

from fastapi import APIRouter, Path, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from service.api.auth import Reader, Writer
from service.api.errors import problems
from service.api.health import Parts
from service.watches.store import Change, Watch, WatchSpec
from service.watches.watching import change_data
from service.watches.webhooks import check_url

router = APIRouter(tags=["watches"])

WatchPath = Annotated[str, Path(max_length=64, pattern=r"^[A-Za-z0-9_-]+$")]


class WatchModel(BaseModel):
    """A watched question and its last answer."""

    id: str
    question: str
    collection: str | None
    documents: list[str]
    mode: str
    webhook: str | None
    answer: dict[str, Any] | None = Field(description="The last: text, citations; null before it, or when erased.")
    checked_at: dt.datetime | None
    created_at: dt.datetime


class NewWatchModel(WatchModel):
    """With the secret that signs what its webhook is told; it is shown this once."""

    secret: str


class WatchList(BaseModel):
    """The caller's watches, the newest first."""

    watches: list[WatchModel]


class ChangeModel(BaseModel):
    """An answer that became another."""

    watch: str
    change: int
    question: str
    at: dt.datetime
    documents: list[dict[str, Any]] = Field(description="What had changed: ids, names, versions.")
    before: dict[str, Any] | None
    after: dict[str, Any]
    difference: dict[str, Any] = Field(description="`words` kept, gone and new; citations `gone` and `new`.")
    delivery: str = Field(description="Of the webhook: none, pending, delivered or failed.")
    error: str | None


class ChangeList(BaseModel):
    """The newest first."""

    changes: list[ChangeModel]


@router.post("/v1/watches", status_code=201, response_model=NewWatchModel, responses=problems(404))
async def add_watch(body: WatchSpec, runtime: Parts, principal: Writer) -> Response:
    """Watch a question: it is asked now, and again within seconds of a change of a document that it is about."""
    if body.webhook is not None:
        check_url(body.webhook, runtime.settings.webhook_private)
    await asyncio.to_thread(body.check_scope, runtime.library, principal.owner)
    watch = await asyncio.to_thread(runtime.watches.add, principal.owner, body)
    return JSONResponse(watch_data(watch) | {"secret": watch.secret}, 201, {"Location": f"/v1/watches/{watch.id}"})


@router.get("/v1/watches", response_model=WatchList, responses=problems())
def list_watches(runtime: Parts, principal: Reader) -> dict[str, Any]:
    """The caller's watches."""
    return {"watches": [watch_data(watch) for watch in runtime.watches.all(principal.owner)]}


@router.get("/v1/watches/{watch}", response_model=WatchModel, responses=problems(404))
def show_watch(watch: WatchPath, runtime: Parts, principal: Reader) -> dict[str, Any]:
    """One watch."""
    return watch_data(runtime.watches.get(principal.owner, watch))


@router.get("/v1/watches/{watch}/changes", response_model=ChangeList, responses=problems(404))
def list_changes(watch: WatchPath, runtime: Parts, principal: Reader) -> dict[str, Any]:
    """What became different."""
    found = runtime.watches.get(principal.owner, watch)
    return {"changes": [whole_change(found, one) for one in runtime.watches.changes(principal.owner, watch)]}


@router.delete("/v1/watches/{watch}", status_code=204, responses=problems(404))
def delete_watch(watch: WatchPath, runtime: Parts, principal: Writer) -> Response:
    """Watch no longer, and forget what was found."""
    runtime.watches.delete(principal.owner, watch)
    return Response(status_code=204)


def watch_data(watch: Watch) -> dict[str, Any]:
    """A watch as JSON, without its secret."""
    spec = watch.spec
    return {
        "id": watch.id,
        "question": spec.text,
        "collection": spec.collection,
        "documents": list(spec.documents),
        "mode": spec.mode,
        "webhook": spec.webhook,
        "answer": watch.state,
        "checked_at": watch.checked_at.isoformat() if watch.checked_at else None,
        "created_at": watch.created_at.isoformat(),
    }


def whole_change(watch: Watch, change: Change) -> dict[str, Any]:
    """A change as JSON, and how its webhook took it."""
    return change_data(watch, change) | {"delivery": change.delivery, "error": change.error}

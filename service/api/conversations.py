"""`/v1/conversations`: conversations of the page, kept for their owner."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Iterator
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel

from service.api.auth import Reader, Writer
from service.api.errors import problems
from service.api.health import Parts
from service.conversations.markdown import References, exported
from service.conversations.store import MOST_TURNS, Title, Turn
from service.fields import Strict

router = APIRouter(tags=["conversations"])

ConversationPath = Annotated[str, Path(max_length=64, pattern=r"^[A-Za-z0-9_-]+$")]


class Named(Strict):
    """What a conversation is called."""

    title: Title


class ConversationModel(BaseModel):
    """A conversation without its turns."""

    id: str
    title: str
    turns: int
    created_at: dt.datetime
    updated_at: dt.datetime


class ConversationList(BaseModel):
    """The caller's, the newest first."""

    conversations: list[ConversationModel]


class TurnList(BaseModel):
    """Questions and answers in order."""

    turns: list[dict[str, Any]]


@router.post("/v1/conversations", status_code=201, response_model=ConversationModel, responses=problems())
def create_conversation(body: Named, runtime: Parts, principal: Writer) -> dict[str, Any]:
    """Begin to keep a conversation."""
    return asdict(runtime.conversations.create(principal.owner, body.title))


@router.get("/v1/conversations", response_model=ConversationList, responses=problems())
def list_conversations(runtime: Parts, principal: Reader) -> dict[str, Any]:
    """The caller's conversations."""
    return {"conversations": [asdict(one) for one in runtime.conversations.all(principal.owner)]}


@router.get("/v1/conversations/{conversation}/turns", response_model=TurnList, responses=problems(404))
def read_turns(conversation: ConversationPath, runtime: Parts, principal: Reader) -> Response:
    """Questions and answers, as they were kept."""
    turns = runtime.conversations.written(principal.owner, conversation)

    def pieces() -> Iterator[str]:
        """A hundred megabytes at most, of which one turn at a time is held."""
        yield '{"turns":['
        for number, turn in enumerate(turns):
            yield f",{turn}" if number else turn
        yield "]}"

    return StreamingResponse(pieces(), media_type="application/json")


@router.put("/v1/conversations/{conversation}", response_model=ConversationModel, responses=problems(404))
def rename_conversation(
    conversation: ConversationPath, body: Named, runtime: Parts, principal: Writer
) -> dict[str, Any]:
    """Call it otherwise."""
    return asdict(runtime.conversations.rename(principal.owner, conversation, body.title))


@router.put(
    "/v1/conversations/{conversation}/turns/{ordinal}",
    response_model=ConversationModel,
    responses=problems(404, 409),
)
def keep_turn(
    conversation: ConversationPath,
    ordinal: Annotated[int, Path(ge=0, lt=MOST_TURNS)],
    body: Turn,
    runtime: Parts,
    principal: Writer,
) -> dict[str, Any]:
    """Keep a turn in its place; those behind it go."""
    most = principal.limits.get("storage_bytes")
    return asdict(runtime.conversations.keep(principal.owner, conversation, ordinal, body, most))


@router.get(
    "/v1/conversations/{conversation}/export",
    response_class=Response,
    responses={**problems(404), 200: {"content": {"text/markdown": {}}}},
)
async def export_conversation(
    conversation: ConversationPath,
    runtime: Parts,
    principal: Reader,
    references: Annotated[References, Query(description="How citations stand in it.")] = "footnotes",
) -> Response:
    """Markdown, with citations as footnotes, or as `[@key]` with BibTeX entries at the end."""
    store, owner = runtime.conversations, principal.owner

    def export() -> tuple[str, str]:
        title = store.get(owner, conversation).title
        return title, exported(title, store.turns(owner, conversation), references)

    title, text = await runtime.exporting.run(owner, export)
    name = re.sub(r"[^A-Za-z0-9]+", "-", title)[:60].strip("-") or "conversation"
    headers = {"Content-Disposition": f'attachment; filename="{name}.md"'}
    return Response(text, media_type="text/markdown; charset=utf-8", headers=headers)


@router.delete("/v1/conversations/{conversation}", status_code=204, responses=problems(404))
def delete_conversation(conversation: ConversationPath, runtime: Parts, principal: Writer) -> Response:
    """Forget a conversation."""
    runtime.conversations.delete(principal.owner, conversation)
    return Response(status_code=204)

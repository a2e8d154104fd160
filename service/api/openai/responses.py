"""`/v1/responses`: OpenAI's newer interface to a conversation, over the same generation as chat completions."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query, Request, Response
from fastapi.responses import JSONResponse
from pydantic import Field, TypeAdapter, ValidationError, model_validator

from service.accounts.responses import ResponseStore
from service.answering.question import MAX_TURNS, AnswerOptions
from service.answering.tools.use import MOST_TOOLS
from service.api.auth import Reader
from service.api.errors import RESPONSES, openai_problems
from service.api.health import Parts
from service.api.openai.chat import Choice, Delta, choices_of
from service.api.openai.common import STREAMED, check_model
from service.api.openai.items import Item, messages_of, new_id, stored
from service.api.openai.lenient import Lenient, tell_unknown
from service.api.openai.response_events import ResponseEvents
from service.api.openai.schemas import ChatMessage, ChatRequest, NamedSchema, ResponseFormat, Seed
from service.api.openai.tools import (
    Allowed,
    AllowedChoice,
    FunctionDefinition,
    FunctionTool,
    NamedChoice,
    NamedFunction,
)
from service.api.sse import EventStream, event
from service.api.waiting import unless_gone
from service.errors import FolioError, InvalidRequest, NotFound
from service.fields import DrafterName, PolicyName, Temperature, Text, TopP, refusal

router = APIRouter(tags=["openai"])

ResponseId = Annotated[str, Path(max_length=64)]
Metadata = Annotated[
    dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]], Field(max_length=16)
]
Keep = Callable[[], Awaitable[None]]
_ITEMS: TypeAdapter[list[Any]] = TypeAdapter(list[Item])


class FlatTool(FunctionDefinition):
    """A function that the model may call."""

    type: Literal["function"]


class FlatChoice(NamedFunction):
    """A choice of one tool."""

    type: Literal["function"]


class FlatAllowed(Lenient):
    """A choice of some tools."""

    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: list[FlatChoice] = Field(min_length=1, max_length=MOST_TOOLS)


class Format(Lenient):
    """Text, any JSON object, or JSON of a schema."""

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = Field(None, max_length=64)
    description: str | None = None
    json_schema: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None

    @model_validator(mode="after")
    def _schema_with_json_schema(self) -> Format:
        if (self.json_schema is not None) != (self.type == "json_schema"):
            raise ValueError("schema belongs to the type json_schema, and to no other")
        return self


class TextOptions(Lenient):
    """What the text must be."""

    format: Format | None = None
    verbosity: None = Field(None, description="Not supported.")


class ResponseRequest(Lenient):
    """Body of `POST /v1/responses`."""

    model: str = Field(max_length=255)
    input: Text | Annotated[list[Item], Field(min_length=1, max_length=MAX_TURNS)]
    instructions: Text | None = Field(None, description="The system's words, of this response alone.")
    previous_response_id: Annotated[str, Field(max_length=64)] | None = None
    store: bool | None = Field(None, description="Keep the response, so that later ones can go on from it.")
    max_output_tokens: int | None = Field(None, ge=1, lt=2**31)
    temperature: Temperature | None = None
    top_p: TopP | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    text: TextOptions | None = None
    tools: Annotated[list[FlatTool], Field(max_length=MOST_TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | FlatChoice | FlatAllowed | None = None
    parallel_tool_calls: bool | None = None
    stream: bool = False
    stream_options: dict[Literal["include_obfuscation"], bool] | None = None
    include: list[Literal["message.output_text.logprobs", "reasoning.encrypted_content"]] | None = None
    truncation: Literal["disabled"] | None = None
    background: Literal[False] | None = None
    reasoning: None = Field(None, description="Not supported.")
    conversation: None = Field(None, description="Not supported; see previous_response_id.")
    prompt: None = Field(None, description="Not supported.")
    max_tool_calls: None = Field(None, description="Not supported.")
    context_management: None = Field(None, description="Not supported.")
    moderation: None = Field(None, description="Not supported.")
    metadata: Metadata | None = None
    seed: Seed | None = Field(None, description="Extension.")
    drafter: DrafterName | None = None
    attention: PolicyName | None = None
    folio: AnswerOptions | None = Field(None, description="Extension: answer from documents, with citations.")
    # Accepted, without effect here.
    user: str | None = Field(None, max_length=1024)
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None

    def chat(self, earlier: list[ChatMessage]) -> ChatRequest:
        """The same as a request of chat completions, behind an earlier conversation. Raises InvalidRequest."""
        system = [ChatMessage(role="system", content=self.instructions)] if self.instructions else []
        said = (
            [ChatMessage(role="user", content=self.input)] if isinstance(self.input, str) else messages_of(self.input)
        )
        with_logprobs = "message.output_text.logprobs" in (self.include or ())
        given = {
            "model": self.model,
            "messages": [*system, *earlier, *said],
            "max_completion_tokens": self.max_output_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "seed": self.seed,
            "logprobs": with_logprobs,
            "top_logprobs": self.top_logprobs if with_logprobs else None,
            "response_format": self._format(),
            "tools": self._tools(),
            "tool_choice": self._choice(),
            "parallel_tool_calls": self.parallel_tool_calls,
            "drafter": self.drafter,
            "attention": self.attention,
            "folio": self.folio,
        }
        try:
            return ChatRequest.model_validate(given)
        except ValidationError as error:
            raise refusal(
                error, lambda place: str(place[0]) if place and place[0] != "messages" else "input"
            ) from error

    def _format(self) -> ResponseFormat | None:
        given = self.text.format if self.text is not None else None
        if given is None:
            return None
        named = None
        if given.json_schema is not None:
            named = NamedSchema(name=given.name or "answer", schema=given.json_schema, strict=given.strict)
        return ResponseFormat(type=given.type, json_schema=named)

    def _tools(self) -> list[FunctionTool] | None:
        if self.tools is None:
            return None
        each = [FunctionDefinition(**tool.model_dump(exclude={"type"})) for tool in self.tools]
        return [FunctionTool(type="function", function=function) for function in each]

    def _choice(self) -> Any:
        given = self.tool_choice
        if isinstance(given, FlatChoice):
            return NamedChoice(type="function", function=NamedFunction(name=given.name))
        if isinstance(given, FlatAllowed):
            named = [NamedChoice(type="function", function=NamedFunction(name=one.name)) for one in given.tools]
            return AllowedChoice(type="allowed_tools", allowed_tools=Allowed(mode=given.mode, tools=named))
        return given


def _kept(request: Request) -> ResponseStore:
    store: ResponseStore = request.app.state.responses
    return store


@router.post(RESPONSES, responses=STREAMED | openai_problems(404, 504))
async def create_response(body: ResponseRequest, request: Request, runtime: Parts, principal: Reader) -> Response:
    """A response, whole or as a stream of events."""
    check_model(runtime, body.model)
    tell_unknown(request, body)
    store = _kept(request)
    earlier: list[ChatMessage] = []
    if body.previous_response_id is not None:
        earlier = await asyncio.to_thread(_earlier, store, principal.owner, body.previous_response_id)
    keeps = store.keeps and body.store is not False
    events = ResponseEvents(_echo(body, runtime.model_name, keeps))
    said = stored(body.input) if not isinstance(body.input, str) else _said(body.input)
    since: int | None = None
    if keeps:
        await asyncio.to_thread(store.check, events.response, said)
        since = await asyncio.to_thread(store.last_delete, principal.owner)
    runtime.engine.admit()
    try:
        system = "instructions" if body.instructions else "input"
        (choice,) = await unless_gone(request.receive, choices_of(runtime, body.chat(earlier), principal, system))
    except InvalidRequest as error:
        raise _renamed(error) from error

    async def keep() -> None:
        if keeps:
            await asyncio.to_thread(store.keep, principal.owner, events.response, said, since)

    if body.stream:
        return EventStream([_told(choice, events, keep)], _Written(events), runtime.settings.ping_s)
    await unless_gone(request.receive, _finish(choice, events, keep))
    return JSONResponse(events.response)


@router.get(RESPONSES + "/{response_id}", responses=openai_problems(404))
def get_response(response_id: ResponseId, request: Request, principal: Reader) -> dict[str, Any]:
    """A response that was kept."""
    return _kept(request).get(principal.owner, response_id)


@router.delete(RESPONSES + "/{response_id}", responses=openai_problems(404))
def delete_response(response_id: ResponseId, request: Request, principal: Reader) -> dict[str, Any]:
    """Forget a response and its input."""
    _kept(request).delete(principal.owner, response_id)
    return {"id": response_id, "object": "response", "deleted": True}


@router.get(RESPONSES + "/{response_id}/input_items", responses=openai_problems(404))
def list_input_items(
    response_id: ResponseId,
    request: Request,
    principal: Reader,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    order: Literal["asc", "desc"] = "desc",
    after: Annotated[str | None, Query(max_length=255)] = None,
) -> dict[str, Any]:
    """The items that a response was asked with."""
    items = _kept(request).items(principal.owner, response_id)
    if order == "desc":
        items.reverse()
    places = {item["id"]: at for at, item in enumerate(items, start=1)}
    if after is not None and after not in places:
        raise NotFound(f"There is no item {after[:64]!r} in this list.", param="after")
    rest = items[places.get(after, 0) if after else 0 :]
    page = rest[:limit]
    return {
        "object": "list",
        "data": page,
        "first_id": page[0]["id"] if page else None,
        "last_id": page[-1]["id"] if page else None,
        "has_more": len(rest) > limit,
    }


def _earlier(store: ResponseStore, owner: str, number: str) -> list[ChatMessage]:
    """The conversation up to a response."""
    return messages_of(_ITEMS.validate_python(store.conversation(owner, number)))


def _said(text: str) -> list[dict[str, Any]]:
    return stored([_ITEMS.validate_python([{"role": "user", "content": text}])[0]])


def _renamed(error: InvalidRequest) -> InvalidRequest:
    """The same, with the fields' names of this route."""
    param = error.param or ""
    if param.startswith(("messages", "prompt", "history", "question")):
        error.param = "input"
    elif param.startswith("tools."):
        error.param = param.replace(".function.", ".")
    elif param == "structured_outputs":
        error.param = "text.format.schema"
    return error


def _echo(body: ResponseRequest, model: str, keeps: bool) -> dict[str, Any]:
    """What of the request a response repeats."""
    format_ = body.text.format if body.text is not None else None
    choice = body.tool_choice
    tools = [
        {"description": None, "parameters": None, "strict": True, **tool.model_dump(exclude_none=True)}
        for tool in body.tools or ()
    ]
    return {
        "id": new_id("resp"),
        "object": "response",
        "created_at": int(time.time()),
        "model": model,
        "background": False,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "max_tool_calls": None,
        "metadata": body.metadata or {},
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": body.previous_response_id,
        "reasoning": {"effort": None, "summary": None},
        "service_tier": "default",
        "store": keeps,
        "temperature": body.temperature,
        "text": {"format": format_.model_dump(by_alias=True, exclude_none=True) if format_ else {"type": "text"}},
        "tool_choice": choice.model_dump() if isinstance(choice, FlatChoice | FlatAllowed) else choice or "auto",
        "tools": tools,
        "top_logprobs": body.top_logprobs or 0,
        "top_p": body.top_p,
        "truncation": "disabled",
        "user": body.user,
    }


async def _told(choice: Choice, events: ResponseEvents, keep: Keep) -> AsyncGenerator[dict[str, Any], None]:
    """The events of a response; it is kept before its end is told."""
    begun = False
    async with aclosing(choice.stream) as items:
        async for item in items:
            if not begun:
                begun = True
                for one in events.begin():
                    yield one
            for one in events.add(choice.read(item)):
                yield one
    *last, ended = events.end()
    for one in last:
        yield one
    await keep()
    yield ended


async def _finish(choice: Choice, events: ResponseEvents, keep: Keep) -> None:
    """The response without its events."""
    whole = Delta()
    async with aclosing(choice.stream) as items:
        async for item in items:
            whole.add(choice.read(item))
    events.add(whole)
    events.end()
    await keep()


class _Written:
    """Events as server-sent ones; see `service.api.sse.Writer`."""

    def __init__(self, events: ResponseEvents) -> None:
        self._events = events

    def begin(self) -> bytes:
        return b""

    def item(self, number: int, item: dict[str, Any]) -> bytes:
        return event(item, item["type"])

    def end(self) -> bytes:
        return b""

    def failure(self, error: FolioError) -> bytes:
        failed = self._events.fail(error.detail)
        return event(failed, failed["type"])

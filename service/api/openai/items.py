"""The items of the Responses API, and the messages of a conversation that they are."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from service.api.openai.lenient import Lenient
from service.api.openai.schemas import ChatMessage, TextPart
from service.api.openai.tools import CalledFunction, CallId, CallMessage, FunctionName
from service.fields import Text

Status = Literal["in_progress", "completed", "incomplete"]
ItemId = Annotated[Text, Field(min_length=1, max_length=255)]


class ContentPart(Lenient):
    """A part of a message: text; what an earlier response said may be sent back as it came."""

    type: Literal["input_text", "output_text", "text"]
    text: Text
    annotations: list[Any] | None = Field(None, description="Of an earlier response; not read.")
    logprobs: list[Any] | None = Field(None, description="Of an earlier response; not read.")


class MessageItem(Lenient):
    """What somebody said."""

    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: Text | Annotated[list[ContentPart], Field(min_length=1)]
    id: ItemId | None = None
    status: Status | None = None


class CallItem(Lenient):
    """A call that an earlier response made."""

    type: Literal["function_call"]
    call_id: CallId
    name: FunctionName
    arguments: Text
    id: ItemId | None = None
    status: Status | None = None


class ResultItem(Lenient):
    """What a called function gave."""

    type: Literal["function_call_output"]
    call_id: CallId
    output: Text | Annotated[list[ContentPart], Field(min_length=1)]
    id: ItemId | None = None
    status: Status | None = None


def _kind(value: Any) -> Any:
    given = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return given or "message"


Item = Annotated[
    Annotated[MessageItem, Tag("message")]
    | Annotated[CallItem, Tag("function_call")]
    | Annotated[ResultItem, Tag("function_call_output")],
    Discriminator(
        _kind,
        custom_error_type="item_type",
        custom_error_message="must be of type message, function_call or function_call_output",
    ),
]
PREFIXES = {"message": "msg", "function_call": "fc", "function_call_output": "fco"}


def new_id(prefix: str) -> str:
    """A name of 24 random hexadecimal digits."""
    return f"{prefix}_{secrets.token_hex(12)}"


def stored(items: Sequence[MessageItem | CallItem | ResultItem]) -> list[dict[str, Any]]:
    """Items as they are kept and listed: each with an id, and contents in parts."""
    kept = []
    for item in items:
        data = {"id": new_id(PREFIXES[item.type]), "status": "completed", **item.model_dump(exclude_none=True)}
        if isinstance(data.get("content"), str):
            kind = "output_text" if data["role"] == "assistant" else "input_text"
            data["content"] = [{"type": kind, "text": data["content"]}]
        kept.append(data)
    return kept


def messages_of(items: Sequence[MessageItem | CallItem | ResultItem]) -> list[ChatMessage]:
    """The conversation as chat completions take it: calls in a row are one message's."""
    messages: list[ChatMessage] = []
    for item in items:
        if isinstance(item, MessageItem):
            messages.append(ChatMessage(role=item.role, content=_content(item.content)))
        elif isinstance(item, ResultItem):
            messages.append(ChatMessage(role="tool", content=_content(item.output), tool_call_id=item.call_id))
        else:
            call = CallMessage(id=item.call_id, function=CalledFunction(name=item.name, arguments=item.arguments))
            if not messages or messages[-1].role != "assistant":
                messages.append(ChatMessage(role="assistant"))
            messages[-1] = messages[-1].model_copy(update={"tool_calls": [*(messages[-1].tool_calls or ()), call]})
    return messages


def _content(content: str | list[ContentPart]) -> str | list[TextPart]:
    return content if isinstance(content, str) else [TextPart(type="text", text=part.text) for part in content]

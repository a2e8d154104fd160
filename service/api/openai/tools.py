"""Tools in the requests of the OpenAI routes, and calls in their responses."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from service.answering.tools.definitions import Tool, ToolChoice
from service.answering.tools.reading import CallPiece
from service.answering.tools.use import MOST_TOOLS
from service.api.openai.lenient import Lenient
from service.errors import InvalidRequest
from service.fields import Strict, Text

FunctionName = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9_-]+$")]
CallId = Annotated[Text, Field(min_length=1, max_length=255)]


class FunctionDefinition(Lenient):
    """A function that the model may call."""

    name: FunctionName
    description: Text | None = None
    parameters: dict[str, Any] | None = Field(default=None, description="JSON schema of the arguments; null for none.")
    strict: bool | None = Field(default=None, description="Arguments always fit the schema.")


class FunctionTool(Lenient):
    """A tool; functions are the only kind."""

    type: Literal["function"]
    function: FunctionDefinition

    def tool(self, param: str) -> Tool:
        given = {} if self.function.parameters is None else {"parameters": self.function.parameters}
        return Tool(self.function.name, self.function.description or "", param=param, **given)


Tools = Annotated[list[FunctionTool], Field(max_length=MOST_TOOLS)]


class NamedFunction(Lenient):
    """The name of a function."""

    name: FunctionName


class NamedChoice(Lenient):
    """A choice of one tool, or an entry of several."""

    type: Literal["function"]
    function: NamedFunction


class Allowed(Strict):
    """Some of the tools, and whether one of them must be called."""

    mode: Literal["auto", "required"]
    tools: list[NamedChoice] = Field(min_length=1, max_length=MOST_TOOLS)


class AllowedChoice(Strict):
    """A choice of some tools."""

    type: Literal["allowed_tools"]
    allowed_tools: Allowed


Choice = Literal["none", "auto", "required"] | NamedChoice | AllowedChoice


class CalledFunction(Lenient):
    """What an assistant called; the arguments are JSON as text."""

    name: FunctionName
    arguments: Text


class CallMessage(Lenient):
    """A call in an assistant's message."""

    id: CallId
    type: Literal["function"] = "function"
    function: CalledFunction


def chosen(choice: Choice | None, parallel: bool | None) -> ToolChoice:
    """The choice as the model is held to it."""
    several = parallel is not False
    if isinstance(choice, NamedChoice):
        return ToolChoice("required", (choice.function.name,), several=False)
    if isinstance(choice, AllowedChoice):
        allowed = choice.allowed_tools
        return ToolChoice(allowed.mode, tuple(one.function.name for one in allowed.tools), several)
    return ToolChoice(choice or "auto", None, several)


def template_calls(calls: Iterable[CallMessage], param: str) -> list[dict[str, Any]]:
    """Calls as chat templates take them. Raises InvalidRequest for arguments that are no JSON object."""
    return [
        {
            "id": call.id,
            "type": "function",
            "function": {
                "name": call.function.name,
                "arguments": arguments_of(call.function.arguments, f"{param}.{at}.function.arguments"),
            },
        }
        for at, call in enumerate(calls)
    ]


def arguments_of(text: str, param: str) -> dict[str, Any]:
    """The arguments of a call in a conversation. Raises InvalidRequest naming the place."""
    try:
        arguments = json.loads(text or "{}")
    except (ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, dict):
        raise InvalidRequest(
            "The arguments of a tool call are no JSON object.", hint="Send them as they were received.", param=param
        )
    return arguments


def check_results(messages: Sequence[dict[str, Any]]) -> None:
    """Refuse results that belong to no call before them, and calls without a result. Raises InvalidRequest."""
    open_calls: set[str] = set()
    for at, message in enumerate(messages):
        if message["role"] == "tool":
            if message["tool_call_id"] not in open_calls:
                raise InvalidRequest(
                    f"The tool message answers the call {message['tool_call_id'][:64]!r}, which no assistant message "
                    "before it makes, or which has been answered.",
                    param=f"messages.{at}.tool_call_id",
                )
            open_calls.remove(message["tool_call_id"])
            continue
        if open_calls:
            raise InvalidRequest(
                f"The tool call {min(open_calls)[:64]!r} has no tool message that answers it.", param=f"messages.{at}"
            )
        open_calls = {call["id"] for call in message.get("tool_calls") or ()}
    if open_calls:
        raise InvalidRequest(
            f"The tool call {min(open_calls)[:64]!r} has no tool message that answers it.", param="messages"
        )


def delta_calls(pieces: Iterable[CallPiece]) -> list[dict[str, Any]]:
    """Pieces of calls as a stream has them."""
    return [
        {
            "index": piece.index,
            **({"id": piece.id, "type": "function"} if piece.id else {}),
            "function": {**({"name": piece.name} if piece.id else {}), "arguments": piece.arguments},
        }
        for piece in pieces
    ]


def whole_calls(pieces: Iterable[CallPiece]) -> list[dict[str, Any]]:
    """Calls as a message has them."""
    calls: list[dict[str, Any]] = []
    for piece in pieces:
        if piece.id:
            function = {"name": piece.name, "arguments": ""}
            calls.append({"id": piece.id, "type": "function", "function": function})
        calls[-1]["function"]["arguments"] += piece.arguments
    return calls

"""A request of Anthropic's as one of chat completions, or as a question about the documents that it brings."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import ValidationError

from service.answering.passages import Passage
from service.answering.prompting.styles import LARGE
from service.answering.question import AnswerOptions, Question
from service.api.anthropic.schemas import (
    Counted,
    DocumentBlock,
    MessageRequest,
    Said,
    SearchResultBlock,
    TextBlock,
    ToolResultBlock,
    ToolUseBlock,
)
from service.api.anthropic.sources import Read, Source, sources
from service.api.openai.schemas import ChatMessage, ChatRequest, NamedSchema, ResponseFormat, TextPart
from service.api.openai.tools import (
    CalledFunction,
    CallMessage,
    FunctionDefinition,
    FunctionTool,
    NamedChoice,
    NamedFunction,
)
from service.errors import InvalidRequest
from service.fields import refusal


def documents_of(body: Counted) -> list[DocumentBlock | SearchResultBlock]:
    """The documents that a request brings, results of tools aside. Raises InvalidRequest for what cannot be cited."""
    found = [
        block for said in body.messages for block in said.blocks if isinstance(block, DocumentBlock | SearchResultBlock)
    ]
    if len({_cited(block) for block in found}) > 1:
        raise InvalidRequest("Citations are enabled for all documents of a request or for none.", param="messages")
    for block in _within_results(body.messages):
        if _cited(block):
            raise InvalidRequest(
                "Search results inside a tool_result cannot be cited.",
                hint="Put them into a user message as blocks of their own, in a request without tools.",
                param="messages",
            )
    return found


def is_cited(body: Counted) -> bool:
    """Whether the answer is to be cited from documents of the request."""
    return any(_cited(block) for block in documents_of(body))


def chat_of(body: Counted, read: Read) -> ChatRequest:
    """The same as a request of chat completions; documents stand in their turns as text. Raises InvalidRequest."""
    named = iter(_shown(sources(documents_of(body), read)))
    messages = [message for said in body.messages for message in _messages(said, named)]
    if body.messages[-1].role == "assistant":
        raise InvalidRequest(
            "The last message must be the user's: an answer cannot be begun for the model.", param="messages"
        )
    system = _text_of(body.system)
    if system:
        messages.insert(0, ChatMessage(role="system", content=system))
    try:
        return ChatRequest(model=body.model, messages=messages, **_tools(body), **_sampled(body))
    except ValidationError as error:
        raise refusal(error, lambda place: str(place[0]) if place else "messages") from error


def decoding_of(body: MessageRequest) -> ChatRequest:
    """How the answer is decoded, as a request of chat completions, of whose conversation nothing is read."""
    return ChatRequest(model=body.model, messages=[ChatMessage(role="user")], **_sampled(body))


def question_of(body: Counted, options: AnswerOptions) -> Question:
    """The last message, asked in the conversation before it. Raises InvalidRequest."""
    for name, given in (("tools", body.tools), ("output_config", body.output_config)):
        if given:
            raise InvalidRequest(f"{name} cannot be had with an answer that is cited from documents.", param=name)
    last = body.messages[-1]
    if last.role != "user":
        raise InvalidRequest("The last message must be the user's question.", param="messages")
    turns = [{"role": said.role, "content": _words(said)} for said in body.messages]
    history = [turn for turn in turns[:-1] if turn["content"]]
    asked = {"question": turns[-1]["content"], "history": history, "instructions": _text_of(body.system)}
    try:
        return Question.model_validate({**options.model_dump(), **asked})
    except ValidationError as error:
        raise refusal(error, lambda place: "system" if place[0] == "instructions" else "messages") from error


def _cited(block: DocumentBlock | SearchResultBlock) -> bool:
    return block.citations is not None and block.citations.enabled


def _within_results(messages: Sequence[Said]) -> Iterator[SearchResultBlock]:
    for said in messages:
        for block in said.blocks:
            if isinstance(block, ToolResultBlock) and isinstance(block.content, list):
                yield from (part for part in block.content if isinstance(part, SearchResultBlock))


def _words(said: Said) -> str:
    """The text of a turn. Raises InvalidRequest for calls, which a question about documents does not know."""
    if any(isinstance(block, ToolUseBlock | ToolResultBlock) for block in said.blocks):
        raise InvalidRequest("An answer that is cited from documents takes no calls of tools.", param="messages")
    return "\n\n".join(block.text for block in said.blocks if isinstance(block, TextBlock))


def _shown(found: Sequence[Source]) -> list[str]:
    """Documents as they stand in a turn, between delimiters that none of them holds."""
    passages: list[Passage] = [source.passage(number) for number, source in enumerate(found)]
    return LARGE.blocks(passages)


def _text_of(content: str | Sequence[TextBlock | SearchResultBlock] | None) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    texts = []
    for part in content:
        if isinstance(part, SearchResultBlock):
            texts.append(f"{part.title} ({part.source})\n" + "\n".join(one.text for one in part.content))
        else:
            texts.append(part.text)
    return "\n\n".join(texts)


def _messages(said: Said, documents: Iterator[str]) -> list[ChatMessage]:
    """A turn as messages: results of tools first, as they answer what the assistant called."""
    results, calls, parts = list[ChatMessage](), list[CallMessage](), list[TextPart]()
    for block in said.blocks:
        if isinstance(block, ToolResultBlock):
            _expect(said, "user", block.type)
            text = _text_of(block.content)
            shown = f"Error: {text}" if block.is_error else text
            results.append(ChatMessage(role="tool", content=shown, tool_call_id=block.tool_use_id))
        elif isinstance(block, ToolUseBlock):
            _expect(said, "assistant", block.type)
            called = CalledFunction(name=block.name, arguments=json.dumps(block.input, ensure_ascii=False))
            calls.append(CallMessage(id=block.id, function=called))
        elif isinstance(block, TextBlock):
            parts.append(TextPart(type="text", text=block.text))
        else:
            _expect(said, "user", block.type)
            parts.append(TextPart(type="text", text=next(documents)))
    if parts or calls or not results:
        content: Any = parts[0].text if len(parts) == 1 else parts or None
        results.append(ChatMessage(role=said.role, content=content, tool_calls=calls or None))
    return results


def _expect(said: Said, role: str, kind: str) -> None:
    if said.role != role:
        raise InvalidRequest(f"A block of type {kind} belongs to a message of the {role}.", param="messages")


def _tools(body: Counted) -> dict[str, Any]:
    tools = [
        FunctionTool(
            type="function",
            function=FunctionDefinition(name=tool.name, description=tool.description, parameters=tool.input_schema),
        )
        for tool in body.tools or ()
    ]
    choice = body.tool_choice
    if choice is None:
        return {"tools": tools or None}
    if (choice.name is not None) != (choice.type == "tool"):
        raise InvalidRequest("tool_choice has a name with type tool, and with no other.", param="tool_choice")
    chosen: Any = {"auto": "auto", "any": "required", "none": "none"}.get(choice.type)
    if choice.name is not None:
        chosen = NamedChoice(type="function", function=NamedFunction(name=choice.name))
    parallel = False if choice.disable_parallel_tool_use else None
    return {"tools": tools or None, "tool_choice": chosen, "parallel_tool_calls": parallel}


def _sampled(body: Counted) -> dict[str, Any]:
    config = body.output_config
    given: dict[str, Any] = {}
    if config is not None and config.format is not None:
        named = NamedSchema(name="answer", schema=config.format.json_schema)
        given["response_format"] = ResponseFormat(type="json_schema", json_schema=named)
    if isinstance(body, MessageRequest):
        given |= {
            "max_completion_tokens": body.max_tokens,
            "temperature": body.temperature,
            "top_p": body.top_p,
            "top_k": body.top_k,
            "stop": body.stop_sequences or None,
            "seed": body.seed,
            "drafter": body.drafter,
            "attention": body.attention,
        }
    return given

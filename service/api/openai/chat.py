"""`POST /v1/chat/completions`: a plain conversation, or a question about documents."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import ValidationError

from service.accounts.keys import Principal
from service.answering.answer import AnswerFailed, Event
from service.answering.question import AnswerOptions, Question
from service.api.auth import Reader
from service.api.errors import CHAT
from service.api.health import Parts
from service.api.openai.common import Chunks, chat_logprobs, check_model, head, usage
from service.api.openai.schemas import ChatRequest
from service.api.sse import EventStream
from service.api.waiting import together, unless_gone
from service.engine.outputs import TokenOutput
from service.errors import InvalidRequest
from service.fields import refusal
from service.runtime import Runtime

router = APIRouter(tags=["openai"])

DEFAULT_TOKENS = 1024
"""Most new tokens where a chat names no limit; less where the window has less room."""


@dataclass
class Delta:
    """What one choice gains: text, log-probabilities; with the last one the reason, figures and citations."""

    text: str = ""
    logprobs: list[dict[str, Any]] = field(default_factory=list)
    finish_reason: str | None = None
    stats: dict[str, Any] = field(default_factory=dict)
    folio: dict[str, Any] | None = None
    answer: str | None = None
    """The whole text, where it is not the sum of the deltas (white space at its ends)."""

    def add(self, other: Delta) -> None:
        """Both in one."""
        self.text += other.text
        self.logprobs += other.logprobs
        self.finish_reason = other.finish_reason or self.finish_reason
        self.stats = other.stats or self.stats
        self.folio = other.folio or self.folio
        self.answer = other.answer if other.answer is not None else self.answer


@dataclass
class Choice:
    """One choice under way: a stream, and how its items are read."""

    stream: AsyncGenerator[Any, None]
    read: Callable[[Any], Delta]


@router.post(CHAT)
async def chat_completions(body: ChatRequest, request: Request, runtime: Parts, principal: Reader) -> Response:
    """Chat completions, streaming and not."""
    check_model(runtime, body.model)
    runtime.engine.admit(body.n)
    choices = await _choices(runtime, body, principal)
    if body.stream:
        streams = [choice.stream for choice in choices]
        return EventStream(streams, ChatChunks(body, runtime, choices), runtime.settings.ping_s)
    wholes = await unless_gone(request.receive, together([_whole(choice) for choice in choices]))
    return JSONResponse(
        head("chat.completion", "chatcmpl", runtime)
        | {
            "choices": [_choice(number, whole, body.logprobs) for number, whole in enumerate(wholes)],
            "usage": usage([whole.stats for whole in wholes]),
        }
    )


async def _choices(runtime: Runtime, body: ChatRequest, principal: Principal) -> list[Choice]:
    wanted = body.max_completion_tokens or body.max_tokens
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    turns = [message.turn() for message in body.messages]
    defaults = runtime.engine.sampling_defaults
    if body.folio is not None:
        question = _question(turns, body.folio)
        tokens = wanted or runtime.settings.answer_tokens
        answers = [
            runtime.answerer.answer(
                question, body.sampling(i, tokens, logprobs, defaults, answering=True), principal.owner
            )
            for i in range(body.n)
        ]
        return [Choice(answer, Answered()) for answer in answers]
    ids = await asyncio.to_thread(runtime.chat.chat_ids, turns)
    tokens = wanted or max(1, min(DEFAULT_TOKENS, runtime.engine.window - len(ids)))
    params = [body.sampling(i, tokens, logprobs, defaults) for i in range(body.n)]
    return [Choice(runtime.engine.stream(ids, one), Said(runtime.tokenizer)) for one in params]


def _question(turns: Sequence[dict[str, str]], options: AnswerOptions) -> Question:
    """The last message, asked in the conversation before it."""
    if turns[-1]["role"] != "user":
        raise InvalidRequest("The last message must be the user's question.", param="messages")
    history = [turn for turn in turns[:-1] if turn["role"] != "system"]
    try:
        return Question.model_validate({**options.model_dump(), "question": turns[-1]["content"], "history": history})
    except ValidationError as error:  # the options have been checked, so it is a message
        raise refusal(error, lambda _: "messages") from error


class Said:
    """Reads the engine's outputs of a plain conversation."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def __call__(self, output: TokenOutput) -> Delta:
        logprobs = chat_logprobs(self._tokenizer, output.logprobs or [])
        return Delta(output.text, logprobs, output.finish_reason, output.stats)


class Answered:
    """Reads the events of an answer about documents; citations come with the last."""

    def __init__(self) -> None:
        self._folio: dict[str, Any] = {"citations": []}
        self._stats: dict[str, Any] = {}

    def __call__(self, one: Event) -> Delta:
        """Raises AnswerFailed for an `error` event."""
        if one.type == "message":
            return Delta(one.data["text"])
        if one.type == "error":
            raise AnswerFailed(one.data)
        if one.type == "done":
            said = {name: one.data[name] for name in ("verified", "claims", "refused", "note")}
            self._folio |= said | {"stats": self._stats}
            return Delta("", [], one.data["finish_reason"], self._stats, self._folio, one.data["answer"])
        if one.type == "search_results":
            self._folio |= {name: one.data[name] for name in ("mode", "mode_reason", "query")}
        elif one.type == "citation":
            self._folio["citations"].append(one.data)
        elif one.type == "stats":
            self._stats = one.data
        return Delta()


async def _whole(choice: Choice) -> Delta:
    whole = Delta()
    async with aclosing(choice.stream) as items:
        async for item in items:
            whole.add(choice.read(item))
    return whole


def _choice(number: int, whole: Delta, with_logprobs: bool) -> dict[str, Any]:
    content = whole.answer if whole.answer is not None else whole.text
    choice: dict[str, Any] = {
        "index": number,
        "message": {"role": "assistant", "content": content, "refusal": None},
        "logprobs": {"content": whole.logprobs, "refusal": None} if with_logprobs else None,
        "finish_reason": whole.finish_reason,
    }
    return choice | ({"folio": whole.folio} if whole.folio else {})


class ChatChunks(Chunks):
    """The chunks of a chat: role, text, reason, usage, and ``[DONE]``."""

    def __init__(self, body: ChatRequest, runtime: Runtime, choices: Sequence[Choice]) -> None:
        super().__init__(CHAT, body, head("chat.completion.chunk", "chatcmpl", runtime))
        self._with_logprobs = body.logprobs
        self._choices = choices

    def begin(self) -> bytes:
        delta = {"role": "assistant", "content": ""}
        return b"".join(
            self.chunk({"index": number, "delta": delta, "finish_reason": None}) for number in range(len(self._choices))
        )

    def item(self, number: int, item: TokenOutput | Event) -> bytes:
        delta = self._choices[number].read(item)
        if delta.finish_reason:
            self.stats[number] = delta.stats
        elif not delta.text:
            return b""
        choice: dict[str, Any] = {
            "index": number,
            "delta": {"content": delta.text} if delta.text else {},
            "finish_reason": delta.finish_reason,
        }
        if self._with_logprobs:
            choice["logprobs"] = {"content": delta.logprobs, "refusal": None}
        if delta.folio:
            choice["folio"] = delta.folio
        return self.chunk(choice)

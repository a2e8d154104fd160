"""`POST /v1/chat/completions`: a plain conversation, or a question about documents."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import ValidationError

from service.accounts.keys import Principal
from service.answering.answer import AnswerFailed, Event
from service.answering.prompting.template import text_of
from service.answering.question import AnswerOptions, Question
from service.answering.tools.reading import CallPiece, CallReader
from service.api.auth import Reader
from service.api.errors import CHAT, openai_problems
from service.api.health import Parts
from service.api.openai.common import (
    STREAMED,
    Chunks,
    chat_logprobs,
    check_logprobs,
    check_model,
    encoded,
    head,
    prompt_logprobs,
    usage,
    written,
)
from service.api.openai.lenient import tell_unknown
from service.api.openai.schemas import ChatRequest
from service.api.openai.tools import check_results, delta_calls, whole_calls
from service.api.sse import EventStream
from service.api.tracing import traced
from service.api.waiting import together, unless_gone
from service.engine.outputs import TokenLogprobs, TokenOutput
from service.errors import InvalidRequest
from service.fields import refusal
from service.runtime import Runtime

router = APIRouter(tags=["openai"])

DEFAULT_TOKENS = 1024
"""Most new tokens where a chat names no limit; less where the window has less room."""


@dataclass
class Delta:
    """What one choice gains: text, calls, log-probabilities; with the last one the reason, figures and citations."""

    text: str = ""
    calls: list[CallPiece] = field(default_factory=list)
    logprobs: list[dict[str, Any]] = field(default_factory=list)
    finish_reason: str | None = None
    stats: dict[str, Any] = field(default_factory=dict)
    folio: dict[str, Any] | None = None
    answer: str | None = None
    """The whole text, where it is not the sum of the deltas (white space at its ends)."""
    prompt_logprobs: list[TokenLogprobs] | None = None
    tokens: int = 0

    def add(self, other: Delta) -> None:
        """Both in one."""
        self.text += other.text
        self.calls += other.calls
        self.logprobs += other.logprobs
        self.finish_reason = other.finish_reason or self.finish_reason
        self.stats = other.stats or self.stats
        self.folio = other.folio or self.folio
        self.answer = other.answer if other.answer is not None else self.answer
        self.prompt_logprobs = other.prompt_logprobs or self.prompt_logprobs
        self.tokens += other.tokens


@dataclass
class Choice:
    """One choice under way: a stream, and how its items are read."""

    stream: AsyncGenerator[Any, None]
    read: Callable[[Any], Delta]
    prompt_tokens: int = 0


@router.post(CHAT, responses=STREAMED | openai_problems(404, 504))
async def chat_completions(body: ChatRequest, request: Request, runtime: Parts, principal: Reader) -> Response:
    """Chat completions, streaming and not."""
    check_model(runtime, body.model)
    tell_unknown(request, body)
    runtime.engine.admit(body.n)
    choices = await unless_gone(request.receive, choices_of(runtime, body, principal))
    if body.folio is not None:
        for choice in choices:
            choice.stream = traced(request, choice.stream)
    if body.stream:
        streams = [choice.stream for choice in choices]
        return EventStream(streams, ChatChunks(body, runtime, choices), runtime.settings.ping_s)
    wholes = await unless_gone(request.receive, together([_whole(choice) for choice in choices]))
    return await written(
        lambda: _response(runtime, body, wholes), costly=body.logprobs or body.prompt_logprobs is not None
    )


def _response(runtime: Runtime, body: ChatRequest, wholes: Sequence[Delta]) -> Response:
    scored = wholes[0].prompt_logprobs
    return JSONResponse(
        head("chat.completion", "chatcmpl", runtime)
        | {
            "choices": [_choice(number, whole, body.logprobs) for number, whole in enumerate(wholes)],
            "usage": usage([whole.stats for whole in wholes]),
        }
        | (
            {}
            if scored is None
            else {"prompt_logprobs": prompt_logprobs(runtime.tokenizer, scored, body.prompt_logprobs or 0)}
        )
    )


async def choices_of(
    runtime: Runtime, body: ChatRequest, principal: Principal, system: str = "messages"
) -> list[Choice]:
    """The choices of a request, none of which has begun. Raises what it can be refused for.

    system: the parameter in which the system's words were given.
    """
    wanted = body.max_completion_tokens if body.max_completion_tokens is not None else body.max_tokens
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    defaults = runtime.engine.sampling_defaults
    messages = [message.message(f"messages.{at}") for at, message in enumerate(body.messages)]
    check_results(messages)
    if body.folio is not None:
        _refuse_beside_documents(body)
        question = _question([message.turn() for message in body.messages], body.folio)
        runtime.answerer.check_instructions(question, system)
        tokens = runtime.answerer.answer_tokens if wanted is None else wanted
        answers = [
            runtime.answerer.answer(
                question, body.sampling(i, tokens, logprobs, defaults, answering=True), principal.owner
            )
            for i in range(body.n)
        ]
        return [Choice(answer, Answered()) for answer in answers]
    tools = body.use_of_tools(runtime.chat)
    schema = body.response_format.schema_of_answer() if body.response_format is not None else None
    constraint = await asyncio.to_thread(tools.constraint, schema)
    said = [text_of(message) for message in messages]
    ids = await encoded(runtime, principal.owner, said, lambda: runtime.chat.chat_ids(messages, tools.shown))
    tokens = max(1, min(DEFAULT_TOKENS, runtime.engine.window - len(ids))) if wanted is None else wanted
    check_logprobs(body, [len(ids)], tokens, logprobs, body.prompt_logprobs)
    params = [body.sampling(i, tokens, logprobs, defaults, body.prompt_logprobs) for i in range(body.n)]
    if constraint is not None:
        params = [replace(one, constraint=constraint) for one in params]
    return [
        Choice(runtime.engine.stream(ids, one), Said(runtime.tokenizer, tools.reader()), len(ids)) for one in params
    ]


def _refuse_beside_documents(body: ChatRequest) -> None:
    """What an answer from documents cannot do; better told than left out."""
    options = body.stream_options
    given = {
        "logprobs": body.logprobs,
        "prompt_logprobs": body.prompt_logprobs is not None,
        "stream_options.continuous_usage_stats": options is not None and options.continuous_usage_stats,
    }
    for name, wanted in given.items():
        if wanted:
            raise InvalidRequest(f"{name} cannot be had with folio: an answer from documents has none.", param=name)


def _question(turns: Sequence[dict[str, str]], options: AnswerOptions) -> Question:
    """The last message, asked in the conversation before it; what the system says, wherever, are instructions."""
    instructions = [turn["content"] for turn in turns if turn["role"] == "system"]
    turns = [turn for turn in turns if turn["role"] != "system"]
    if not turns or turns[-1]["role"] != "user":
        raise InvalidRequest("The last message must be the user's question.", param="messages")
    if any(turn["role"] == "tool" for turn in turns):
        raise InvalidRequest("An answer from documents takes no messages of tools.", param="messages")
    asked = {"question": turns[-1]["content"], "history": turns[:-1], "instructions": "\n\n".join(instructions)}
    try:
        return Question.model_validate({**options.model_dump(), **asked})
    except ValidationError as error:  # the options have been checked, so it is a message
        raise refusal(error, lambda _: "messages") from error


class Said:
    """Reads the engine's outputs of a plain conversation, and the calls in them where there are tools."""

    def __init__(self, tokenizer: Any, calls: CallReader | None = None) -> None:
        self._tokenizer = tokenizer
        self._calls = calls

    def __call__(self, output: TokenOutput) -> Delta:
        logprobs = chat_logprobs(self._tokenizer, output.logprobs or [])
        scored, count = output.prompt_logprobs, len(output.token_ids)
        text, calls, reason = output.text, list[CallPiece](), output.finish_reason
        if self._calls is not None:
            text, calls = self._calls.feed(output)
            reason = "tool_calls" if reason == "stop" and self._calls.calls else reason
        return Delta(text, calls, logprobs, reason, output.stats, prompt_logprobs=scored, tokens=count)


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
            return Delta("", [], [], one.data["finish_reason"], self._stats, self._folio, one.data["answer"])
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
    message: dict[str, Any] = {
        "role": "assistant",
        "content": whole.answer if whole.answer is not None else whole.text,
        "refusal": None,
    }
    if whole.calls:
        message |= {"content": whole.text or None, "tool_calls": whole_calls(whole.calls)}
    choice: dict[str, Any] = {
        "index": number,
        "message": message,
        "logprobs": {"content": whole.logprobs, "refusal": None} if with_logprobs else None,
        "finish_reason": whole.finish_reason,
    }
    return choice | ({"folio": whole.folio} if whole.folio else {})


class ChatChunks(Chunks):
    """The chunks of a chat: role, text, reason, usage, and ``[DONE]``."""

    def __init__(self, body: ChatRequest, runtime: Runtime, choices: Sequence[Choice]) -> None:
        lengths = [choice.prompt_tokens for choice in choices]
        super().__init__(CHAT, body, head("chat.completion.chunk", "chatcmpl", runtime), lengths=lengths)
        self._with_logprobs = body.logprobs
        self._choices = choices

    def begin(self) -> bytes:
        delta = {"role": "assistant", "content": ""}
        return b"".join(
            self.chunk({"index": number, "delta": delta, "finish_reason": None}) for number in range(len(self._choices))
        )

    def item(self, number: int, item: TokenOutput | Event) -> bytes:
        delta = self._choices[number].read(item)
        self.count(number, delta.tokens)
        if delta.finish_reason:
            self.stats[number] = delta.stats
        elif not (delta.text or delta.calls or delta.logprobs):
            return b""
        gained: dict[str, Any] = {"content": delta.text} if delta.text else {}
        if delta.calls:
            gained["tool_calls"] = delta_calls(delta.calls)
        choice: dict[str, Any] = {
            "index": number,
            "delta": gained,
            "finish_reason": delta.finish_reason,
        }
        if self._with_logprobs:
            choice["logprobs"] = {"content": delta.logprobs, "refusal": None}
        if delta.folio:
            choice["folio"] = delta.folio
        return self.chunk(choice)

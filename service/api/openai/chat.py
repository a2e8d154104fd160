"""`POST /v1/chat/completions`: a plain conversation, or a question about documents."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from service.accounts.keys import Principal
from service.answering.answer import AnswerFailed, Question
from service.api.auth import Reader
from service.api.health import Parts
from service.api.openai.common import (
    DEFAULT_TOKENS,
    chat_logprobs,
    check_model,
    error_body,
    merged,
    new_id,
    now,
    usage,
)
from service.api.openai.schemas import ChatRequest, FolioOptions
from service.api.sse import EventStream, event, first_item, unless_gone
from service.engine.request import SamplingParams
from service.errors import FolioError, InvalidRequest
from service.runtime import Runtime

router = APIRouter(tags=["openai"])


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


@router.post("/v1/chat/completions")
async def chat_completions(body: ChatRequest, request: Request, runtime: Parts, principal: Reader) -> Response:
    """Chat completions, streaming and not."""
    check_model(runtime, body.model)
    runtime.engine.admit(body.n)
    choices = await _choices(runtime, body, principal)
    streams = merged(choices)
    if body.stream:
        started = await first_item(streams)
        return EventStream(_chunks(started, body, runtime), runtime.settings.ping_s)
    return JSONResponse(await unless_gone(request, _whole(streams, body, runtime)))


async def _choices(runtime: Runtime, body: ChatRequest, principal: Principal) -> list[AsyncGenerator[Delta, None]]:
    """One stream of deltas a choice."""
    wanted = body.max_completion_tokens or body.max_tokens
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    turns = [message.turn() for message in body.messages]
    if body.folio is not None:
        tokens = wanted or runtime.settings.answer_tokens
        question = _question(turns, body.folio, principal)
        params = [body.sampling(i, tokens, logprobs, greedy=True) for i in range(body.n)]
        return [_answered(runtime, question, one) for one in params]
    ids = await asyncio.to_thread(runtime.chat.chat_ids, turns)
    tokens = wanted or max(1, min(DEFAULT_TOKENS, runtime.engine.window - len(ids)))
    params = [body.sampling(i, tokens, logprobs, greedy=False) for i in range(body.n)]
    runtime.engine.check(params[0])
    runtime.engine.check_prompt(ids, params[0], "messages")
    return [_talked(runtime, ids, one) for one in params]


def _question(turns: list[dict[str, str]], options: FolioOptions, principal: Principal) -> Question:
    if turns[-1]["role"] != "user":
        raise InvalidRequest("The last message must be the user's question.", param="messages")
    return Question(
        text=turns[-1]["content"],
        mode=options.mode,
        documents=tuple(options.documents),
        collection=options.collection,
        owner=principal.owner,
        passages=options.passages,
        history=tuple(turn for turn in turns[:-1] if turn["role"] != "system"),
        iterative=options.iterative.options(),
    )


async def _talked(runtime: Runtime, ids: list[int], params: SamplingParams) -> AsyncGenerator[Delta, None]:
    """Deltas of a plain conversation."""
    tokenizer = runtime.tokenizer
    async with aclosing(runtime.engine.stream(ids, params)) as outputs:
        async for output in outputs:
            delta = Delta(output.text, finish_reason=output.finish_reason, stats=output.stats)
            if output.logprobs:
                delta.logprobs = chat_logprobs(tokenizer, output.logprobs)
            yield delta


async def _answered(runtime: Runtime, question: Question, params: SamplingParams) -> AsyncGenerator[Delta, None]:
    """Deltas of an answer about documents; citations come with the last."""
    folio: dict[str, Any] = {"citations": []}
    stats: dict[str, Any] = {}
    async with aclosing(runtime.answerer.answer(question, params)) as events:
        async for one in events:
            if one.type == "message":
                yield Delta(one.data["text"])
            elif one.type == "search_results":
                folio |= {"mode": one.data["mode"], "mode_reason": one.data["mode_reason"]}
            elif one.type == "citation":
                folio["citations"].append(one.data)
            elif one.type == "stats":
                stats = one.data
            elif one.type == "error":
                raise AnswerFailed(one.data)
            else:
                folio |= {"note": one.data.get("note"), "stats": stats}
                yield Delta("", [], one.data["finish_reason"], stats, folio, one.data.get("answer"))


async def _whole(
    streams: AsyncGenerator[tuple[int, Delta], None], body: ChatRequest, runtime: Runtime
) -> dict[str, Any]:
    """All choices folded into one response."""
    folded = [Delta() for _ in range(body.n)]
    async with aclosing(streams):
        async for number, delta in streams:
            whole = folded[number]
            whole.text += delta.text
            whole.logprobs += delta.logprobs
            whole.finish_reason = delta.finish_reason or whole.finish_reason
            whole.stats = delta.stats or whole.stats
            whole.folio = delta.folio or whole.folio
            whole.answer = delta.answer if delta.answer is not None else whole.answer
    choices = []
    for number, whole in enumerate(folded):
        content = whole.answer if whole.answer is not None else whole.text
        choice: dict[str, Any] = {
            "index": number,
            "message": {"role": "assistant", "content": content, "refusal": None},
            "logprobs": {"content": whole.logprobs, "refusal": None} if body.logprobs else None,
            "finish_reason": whole.finish_reason,
        }
        choices.append(choice | ({"folio": whole.folio} if whole.folio else {}))
    return _head("chat.completion", runtime) | {
        "choices": choices,
        "usage": usage([whole.stats for whole in folded]),
    }


async def _chunks(
    streams: AsyncGenerator[tuple[int, Delta], None], body: ChatRequest, runtime: Runtime
) -> AsyncGenerator[bytes, None]:
    """The chunks of a stream: role, text, reason, usage, and ``[DONE]``."""
    head = _head("chat.completion.chunk", runtime)
    with_usage = body.stream_options is not None and body.stream_options.include_usage
    extra = {"usage": None} if with_usage else {}
    stats: dict[int, dict[str, Any]] = {}
    for number in range(body.n):
        role = {"index": number, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}
        yield event({**head, "choices": [role], **extra})
    try:
        async with aclosing(streams):
            async for number, delta in streams:
                choice: dict[str, Any] = {
                    "index": number,
                    "delta": {"content": delta.text} if delta.text else {},
                    "finish_reason": delta.finish_reason,
                }
                if body.logprobs:
                    choice["logprobs"] = {"content": delta.logprobs, "refusal": None}
                if delta.folio:
                    choice["folio"] = delta.folio
                if delta.finish_reason:
                    stats[number] = delta.stats
                if delta.text or delta.finish_reason:
                    yield event({**head, "choices": [choice], **extra})
    except FolioError as error:
        yield event(error_body(error))
        return
    if with_usage:
        yield event({**head, "choices": [], "usage": usage(list(stats.values()))})
    yield b"data: [DONE]\n\n"


def _head(kind: str, runtime: Runtime) -> dict[str, Any]:
    return {
        "id": new_id("chatcmpl"),
        "object": kind,
        "created": now(),
        "model": runtime.model_name,
        "system_fingerprint": None,
    }

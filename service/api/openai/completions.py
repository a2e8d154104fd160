"""`POST /v1/completions`: text or token ids in, more text out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from service.api.auth import Reader
from service.api.health import Parts
from service.api.openai.common import (
    check_model,
    completion_logprobs,
    error_body,
    merged,
    new_id,
    now,
    usage,
)
from service.api.openai.schemas import CompletionRequest
from service.api.sse import EventStream, event, first_item, unless_gone
from service.engine.request import TokenLogprobs, TokenOutput
from service.errors import FolioError
from service.runtime import Runtime

router = APIRouter(tags=["openai"])

DEFAULT_TOKENS = 16
"""OpenAI's own default of this route."""


@router.post("/v1/completions")
async def completions(body: CompletionRequest, request: Request, runtime: Parts, principal: Reader) -> Response:
    """Completions of one or several prompts, streaming and not."""
    check_model(runtime, body.model)
    engine = runtime.engine
    prompts = await asyncio.to_thread(_prompt_ids, runtime, body.prompt)
    engine.admit(body.n * len(prompts))
    tokens = body.max_tokens or DEFAULT_TOKENS
    params = [body.sampling(i, tokens, body.logprobs, greedy=False) for i in range(body.n)]
    engine.check(params[0])
    for ids in prompts:
        engine.check_prompt(ids, params[0])
    streams = merged([engine.stream(ids, one) for ids in prompts for one in params])
    if body.stream:
        started = await first_item(streams)
        return EventStream(_chunks(started, body, runtime, len(prompts)), runtime.settings.ping_s)
    return JSONResponse(await unless_gone(request, _whole(streams, body, runtime, len(prompts))))


def _prompt_ids(runtime: Runtime, prompt: Any) -> list[list[int]]:
    """Each prompt as ids: text is encoded as the tokenizer's own call does, ids are taken as they are."""
    if isinstance(prompt, str):
        return [runtime.chat.encoder.plain(prompt)]
    if isinstance(prompt[0], int):
        return [list(prompt)]
    return [runtime.chat.encoder.plain(one) if isinstance(one, str) else list(one) for one in prompt]


async def _whole(
    streams: AsyncGenerator[tuple[int, TokenOutput], None],
    body: CompletionRequest,
    runtime: Runtime,
    prompts: int,
) -> dict[str, Any]:
    count = prompts * body.n
    texts, reasons = [""] * count, [""] * count
    found: list[list[TokenLogprobs]] = [[] for _ in range(count)]
    stats: list[dict[str, Any]] = [{} for _ in range(count)]
    async with aclosing(streams):
        async for number, output in streams:
            texts[number] += output.text
            found[number] += output.logprobs or []
            if output.finished:
                reasons[number], stats[number] = output.finish_reason or "", output.stats
    choices = [_choice(i, texts[i], reasons[i], _logprobs(runtime, body, found[i], 0)) for i in range(count)]
    return _head(runtime) | {"choices": choices, "usage": usage(stats, prompts)}


async def _chunks(
    streams: AsyncGenerator[tuple[int, TokenOutput], None],
    body: CompletionRequest,
    runtime: Runtime,
    prompts: int,
) -> AsyncGenerator[bytes, None]:
    head = _head(runtime)
    with_usage = body.stream_options is not None and body.stream_options.include_usage
    extra = {"usage": None} if with_usage else {}
    stats: dict[int, dict[str, Any]] = {}
    lengths = [0] * (prompts * body.n)
    try:
        async with aclosing(streams):
            async for number, output in streams:
                if output.finished:
                    stats[number] = output.stats
                if not (output.text or output.finished or output.logprobs):
                    continue
                logprobs = _logprobs(runtime, body, output.logprobs or [], lengths[number])
                lengths[number] += len(output.text)
                choice = _choice(number, output.text, output.finish_reason, logprobs)
                yield event({**head, "choices": [choice], **extra})
    except FolioError as error:
        yield event(error_body(error))
        return
    if with_usage:
        ordered = [stats[number] for number in sorted(stats)]
        yield event({**head, "choices": [], "usage": usage(ordered, prompts)})
    yield b"data: [DONE]\n\n"


def _logprobs(
    runtime: Runtime, body: CompletionRequest, found: Sequence[TokenLogprobs], offset: int
) -> dict[str, Any] | None:
    return completion_logprobs(runtime.tokenizer, found, offset) if body.logprobs is not None else None


def _choice(index: int, text: str, reason: str | None, logprobs: dict[str, Any] | None) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}


def _head(runtime: Runtime) -> dict[str, Any]:
    return {
        "id": new_id("cmpl"),
        "object": "text_completion",
        "created": now(),
        "model": runtime.model_name,
        "system_fingerprint": None,
    }

"""`POST /v1/completions`: text or token ids in, more text out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from service.api.auth import Reader
from service.api.health import Parts
from service.api.openai.common import Chunks, check_model, completion_logprobs, head, usage
from service.api.openai.schemas import CompletionRequest
from service.api.sse import EventStream
from service.api.waiting import together, unless_gone
from service.engine.outputs import TokenLogprobs, TokenOutput
from service.runtime import Runtime

router = APIRouter(tags=["openai"])

DEFAULT_TOKENS = 16
"""OpenAI's own default of this route."""
PATH = "/v1/completions"


@router.post(PATH)
async def completions(body: CompletionRequest, request: Request, runtime: Parts, principal: Reader) -> Response:
    """Completions of one or several prompts, streaming and not."""
    check_model(runtime, body.model)
    prompts = await asyncio.to_thread(_prompt_ids, runtime, body.prompt)
    runtime.engine.admit(body.n * len(prompts))
    tokens = body.max_tokens or DEFAULT_TOKENS
    defaults = runtime.engine.sampling_defaults
    params = [body.sampling(i, tokens, body.logprobs, defaults) for i in range(body.n)]
    streams = [runtime.engine.stream(ids, one) for ids in prompts for one in params]
    chunks = CompletionChunks(body, runtime, len(prompts))
    if body.stream:
        return EventStream(streams, chunks, runtime.settings.ping_s)
    wholes = await unless_gone(request.receive, together([_whole(stream) for stream in streams]))
    choices = [chunks.choice(number, whole, 0) for number, whole in enumerate(wholes)]
    figures = usage([whole.stats for whole in wholes], len(prompts))
    return JSONResponse(head("text_completion", "cmpl", runtime) | {"choices": choices, "usage": figures})


def _prompt_ids(runtime: Runtime, prompt: Any) -> list[list[int]]:
    """Each prompt as ids: text is encoded as the tokenizer's own call does, ids are taken as they are."""
    if isinstance(prompt, str):
        return [runtime.chat.encoder.plain(prompt)]
    if isinstance(prompt[0], int):
        return [list(prompt)]
    return [runtime.chat.encoder.plain(one) if isinstance(one, str) else list(one) for one in prompt]


async def _whole(stream: AsyncGenerator[TokenOutput, None]) -> TokenOutput:
    """All outputs in one."""
    text, found = "", list[TokenLogprobs]()
    async with aclosing(stream) as outputs:
        async for output in outputs:
            text += output.text
            found += output.logprobs or []
    return replace(output, text=text, logprobs=found)


class CompletionChunks(Chunks):
    """The chunks of completions, and their choices."""

    def __init__(self, body: CompletionRequest, runtime: Runtime, prompts: int) -> None:
        super().__init__(PATH, body, head("text_completion", "cmpl", runtime), prompts)
        self._tokenizer = runtime.tokenizer if body.logprobs is not None else None
        self._lengths = [0] * (prompts * body.n)

    def item(self, number: int, item: TokenOutput) -> bytes:
        if item.finished:
            self.stats[number] = item.stats
        elif not (item.text or item.logprobs):
            return b""
        choice = self.choice(number, item, self._lengths[number])
        self._lengths[number] += len(item.text)
        return self.chunk(choice)

    def choice(self, number: int, output: TokenOutput, offset: int) -> dict[str, Any]:
        """A choice, or a piece of it behind `offset` characters."""
        logprobs = None
        if self._tokenizer is not None:
            logprobs = completion_logprobs(self._tokenizer, output.logprobs or [], offset)
        return {"index": number, "text": output.text, "logprobs": logprobs, "finish_reason": output.finish_reason}

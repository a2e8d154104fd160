"""`POST /v1/completions`: text or token ids in, more text out."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from service.api.auth import Reader
from service.api.errors import openai_problems
from service.api.health import Parts
from service.api.openai.common import (
    STREAMED,
    Chunks,
    check_logprobs,
    check_model,
    completion_logprobs,
    encoded,
    head,
    prompt_logprobs,
    usage,
    written,
)
from service.api.openai.lenient import tell_unknown
from service.api.openai.schemas import CompletionRequest
from service.api.openai.token_text import Offsets, TokenTexts, token_texts
from service.api.sse import EventStream
from service.api.waiting import together, unless_gone
from service.engine.outputs import TokenLogprobs, TokenOutput
from service.runtime import Runtime

router = APIRouter(tags=["openai"])

DEFAULT_TOKENS = 16
"""OpenAI's own default of this route."""
PATH = "/v1/completions"


@dataclass(frozen=True)
class Prompt:
    """One prompt: its ids, and its text where that is to be repeated."""

    ids: list[int]
    text: str


@router.post(PATH, responses=STREAMED | openai_problems(404, 504))
async def completions(body: CompletionRequest, request: Request, runtime: Parts, principal: Reader) -> Response:
    """Completions of one or several prompts, streaming and not."""
    check_model(runtime, body.model)
    tell_unknown(request, body)
    given = _given(body.prompt)
    runtime.engine.admit(body.n * len(given))
    texts = [one for one in given if isinstance(one, str)]
    making = encoded(runtime, principal.owner, texts, lambda: _prompts(runtime, given, body.echo), together=False)
    prompts = await unless_gone(request.receive, making)
    tokens = DEFAULT_TOKENS if body.max_tokens is None else body.max_tokens
    defaults = runtime.engine.sampling_defaults
    check_logprobs(body, [len(prompt.ids) for prompt in prompts], tokens, body.logprobs, body.scored)
    params = [body.sampling(i, tokens, body.logprobs, defaults, body.scored) for i in range(body.n)]
    streams = [runtime.engine.stream(prompt.ids, one) for prompt in prompts for one in params]
    chunks = CompletionChunks(body, runtime, prompts)
    if body.stream:
        return EventStream(streams, chunks, runtime.settings.ping_s)
    wholes = await unless_gone(request.receive, together([_whole(stream) for stream in streams]))

    def whole_response() -> Response:
        choices = [chunks.choice(number, whole) for number, whole in enumerate(wholes)]
        figures = usage([whole.stats for whole in wholes], len(prompts))
        return JSONResponse(head("text_completion", "cmpl", runtime) | {"choices": choices, "usage": figures})

    return await written(whole_response, costly=body.logprobs is not None or body.scored is not None)


def _given(prompt: Any) -> list[str | list[int]]:
    """Each prompt by itself."""
    return [prompt] if isinstance(prompt, str) or isinstance(prompt[0], int) else prompt


def _prompts(runtime: Runtime, given: Sequence[str | list[int]], echo: bool) -> list[Prompt]:
    """Text is encoded as the tokenizer's own call does, ids are taken as they are."""
    encoder = runtime.chat.encoder
    return [
        Prompt(encoder.plain(one), one)
        if isinstance(one, str)
        else Prompt(list(one), encoder.decoded(list(one)) if echo else "")
        for one in given
    ]


async def _whole(stream: AsyncGenerator[TokenOutput, None]) -> TokenOutput:
    """All outputs in one."""
    text, found, scored = "", list[TokenLogprobs](), None
    async with aclosing(stream) as outputs:
        async for output in outputs:
            text += output.text
            found += output.logprobs or []
            scored = output.prompt_logprobs if scored is None else scored
    return replace(output, text=text, logprobs=found, prompt_logprobs=scored)


class CompletionChunks(Chunks):
    """The chunks of completions, and their choices."""

    def __init__(self, body: CompletionRequest, runtime: Runtime, prompts: Sequence[Prompt]) -> None:
        self._prompt_of = [prompt for prompt in prompts for _ in range(body.n)]
        lengths = [len(prompt.ids) for prompt in self._prompt_of]
        super().__init__(PATH, body, head("text_completion", "cmpl", runtime), len(prompts), lengths)
        self._tokenizer = runtime.tokenizer
        self._texts = token_texts(runtime.tokenizer) if body.logprobs is not None else None
        self._body = body
        self._offsets: dict[int, Offsets] = {}
        self._begun: set[int] = set()

    def item(self, number: int, item: TokenOutput) -> bytes:
        self.count(number, len(item.token_ids))
        if item.finished:
            self.stats[number] = item.stats
        elif not (item.text or item.logprobs):
            return b""
        return self.chunk(self.choice(number, item))

    def choice(self, number: int, output: TokenOutput) -> dict[str, Any]:
        """A choice, or the next piece of it; the first begins with the prompt where that is to be repeated."""
        prompt = self._prompt_of[number]
        echoed = self._body.echo and number not in self._begun
        self._begun.add(number)
        choice: dict[str, Any] = {
            "index": number,
            "text": (prompt.text if echoed else "") + output.text,
            "logprobs": None,
            "finish_reason": output.finish_reason,
        }
        if self._texts is not None:
            choice["logprobs"] = self._logprobs(self._texts, number, output, echoed)
        count = self._body.prompt_logprobs
        if count is not None and output.prompt_logprobs is not None:
            choice["prompt_logprobs"] = prompt_logprobs(self._tokenizer, output.prompt_logprobs, count)
        return choice

    def _logprobs(self, texts: TokenTexts, number: int, output: TokenOutput, echoed: bool) -> dict[str, Any]:
        prompt, found, count = self._prompt_of[number], output.logprobs or [], self._body.logprobs or 0
        if not echoed:
            offsets = self._offsets.setdefault(number, Offsets(texts))
            return completion_logprobs(texts, found, offsets, count)
        offsets = self._offsets[number] = Offsets(texts, prompt.text)
        before = completion_logprobs(texts, [prompt.ids[0], *(output.prompt_logprobs or [])], offsets, count)
        offsets.skip_known()
        behind = completion_logprobs(texts, found, offsets, count)
        return {name: before[name] + behind[name] for name in before}

"""What the OpenAI routes share: names, usage, log-probabilities, and several choices at once."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing
from typing import Any, TypeVar

from service.engine.request import TokenLogprobs
from service.errors import FolioError, NotFound
from service.runtime import Runtime

T = TypeVar("T")

DEFAULT_TOKENS = 1024
"""Most new tokens where a chat names no limit; less where the window has less room."""


def new_id(prefix: str) -> str:
    """An id for a response."""
    return f"{prefix}-{secrets.token_hex(12)}"


def now() -> int:
    """Seconds since the epoch."""
    return int(time.time())


def check_model(runtime: Runtime, name: str) -> None:
    """Refuse a model that is not the one served. Raises NotFound, as OpenAI's own service does."""
    if name not in (runtime.model_name, runtime.settings.model):
        raise NotFound(
            f"The model {name[:100]!r} does not exist here.",
            hint=f"This service has {runtime.model_name!r}.",
            param="model",
        )


def usage(parts: Sequence[Mapping[str, Any]], prompts: int = 1) -> dict[str, Any]:
    """OpenAI's usage object over the statistics of all choices.

    Choices of one prompt count its tokens once. Drafted tokens are reported as predictions.
    """
    each = max(1, len(parts) // max(1, prompts))
    prompt = sum(int(p.get("prompt_tokens") or 0) for p in parts[::each])
    output = sum(int(p.get("output_tokens") or 0) for p in parts)
    drafting = [p.get("drafting") or {} for p in parts]
    accepted = sum(int(d.get("accepted", 0)) for d in drafting)
    drafted = sum(int(d.get("drafted", 0)) for d in drafting)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": output,
        "total_tokens": prompt + output,
        "prompt_tokens_details": {"cached_tokens": sum(int(p.get("cached_tokens") or 0) for p in parts[::each])},
        "completion_tokens_details": {
            "accepted_prediction_tokens": accepted,
            "rejected_prediction_tokens": drafted - accepted,
        },
    }


def error_body(error: FolioError) -> dict[str, Any]:
    """OpenAI's error object, for an error in mid-stream."""
    code = error.problem.replace("-", "_")
    return {"error": {"message": error.detail, "type": error.openai_type, "param": error.param, "code": code}}


def chat_logprobs(tokenizer: Any, found: Sequence[TokenLogprobs]) -> list[dict[str, Any]]:
    """Log-probabilities as chat completions give them."""
    return [
        {
            **_token(tokenizer, entry.token_id, entry.logprob),
            "top_logprobs": [_token(tokenizer, token, logprob) for token, logprob in entry.top],
        }
        for entry in found
    ]


def completion_logprobs(tokenizer: Any, found: Sequence[TokenLogprobs], offset: int) -> dict[str, Any]:
    """Log-probabilities as plain completions give them; `offset` is the length of the text before them."""
    tokens = [tokenizer.decode([entry.token_id]) for entry in found]
    offsets = [offset + sum(map(len, tokens[:i])) for i in range(len(tokens))]
    return {
        "tokens": tokens,
        "token_logprobs": [entry.logprob for entry in found],
        "top_logprobs": [{tokenizer.decode([t]): p for t, p in entry.top} for entry in found],
        "text_offset": offsets,
    }


def _token(tokenizer: Any, token_id: int, logprob: float) -> dict[str, Any]:
    text = tokenizer.decode([token_id])
    return {"token": text, "logprob": logprob, "bytes": list(text.encode())}


async def merged(streams: Sequence[AsyncGenerator[T, None]]) -> AsyncGenerator[tuple[int, T], None]:
    """Items of several streams as they come, each with its stream's number; closing closes them all."""
    waiting: dict[asyncio.Task[T], int] = {}
    async with AsyncExitStack() as stack:
        for stream in streams:
            await stack.enter_async_context(aclosing(stream))
        try:
            for number, stream in enumerate(streams):
                waiting[asyncio.ensure_future(anext(stream))] = number
            while waiting:
                done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    number = waiting.pop(task)
                    try:
                        item = task.result()
                    except StopAsyncIteration:
                        continue
                    yield number, item
                    waiting[asyncio.ensure_future(anext(streams[number]))] = number
        finally:
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)

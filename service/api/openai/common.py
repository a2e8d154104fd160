"""What the OpenAI routes share: the head of a response, usage, log-probabilities, the chunks of a stream."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from fastapi import Request

from service.api.errors import openai_problem
from service.api.openai.schemas import Sampled
from service.api.sse import event
from service.api.waiting import unless_gone
from service.engine.outputs import TokenLogprobs
from service.errors import FolioError, NotFound
from service.runtime import Runtime

T = TypeVar("T")


def head(kind: str, prefix: str, runtime: Runtime) -> dict[str, Any]:
    """What every response and every chunk begins with."""
    return {
        "id": f"{prefix}-{secrets.token_hex(12)}",
        "object": kind,
        "created": int(time.time()),
        "model": runtime.model_name,
        "system_fingerprint": None,
    }


def check_model(runtime: Runtime, name: str) -> None:
    """Refuse a model that is not the one served. Raises NotFound, as OpenAI's own service does."""
    if name not in (runtime.model_name, runtime.settings.model):
        raise NotFound(
            f"The model {name[:100]!r} does not exist here.",
            hint=f"This service has {runtime.model_name!r}.",
            param="model",
        )


async def encoded(
    request: Request, runtime: Runtime, owner: str, texts: Sequence[str], encode: Callable[[], T], together: bool = True
) -> T:
    """What `encode` makes of texts of which each, or all `together`, may be as long as the model's window.

    In the owner's turn, and as long as the client waits. Raises PromptTooLong.
    """

    prompts: list[Sequence[str]] = [texts] if together else [[text] for text in texts]

    def work() -> T:
        for prompt in prompts:
            runtime.chat.encoder.check_length(prompt, runtime.engine.engine.max_model_len)
        return encode()

    return await unless_gone(request.receive, runtime.encoding.run(owner, work))


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


class Chunks:
    """Writes the chunks of a stream, and what comes behind them; see `service.api.sse.Writer`."""

    def __init__(self, path: str, body: Sampled, head: dict[str, Any], prompts: int = 1) -> None:
        self.stats: dict[int, dict[str, Any]] = {}
        """By the number of the choice, once it has ended."""
        self._path = path
        self._head = head
        self._prompts = prompts
        self._with_usage = body.stream_options is not None and body.stream_options.include_usage

    def chunk(self, choice: dict[str, Any]) -> bytes:
        """One choice's next piece."""
        return event({**self._head, "choices": [choice], **({"usage": None} if self._with_usage else {})})

    def begin(self) -> bytes:
        return b""

    def end(self) -> bytes:
        """Usage where it is wanted, and ``[DONE]``."""
        done = b"data: [DONE]\n\n"
        if not self._with_usage:
            return done
        ordered = [self.stats[number] for number in sorted(self.stats)]
        return event({**self._head, "choices": [], "usage": usage(ordered, self._prompts)}) + done

    def failure(self, error: FolioError) -> bytes:
        return event(openai_problem(self._path, error))

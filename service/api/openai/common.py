"""What the OpenAI routes share: the head of a response, usage, log-probabilities, the chunks of a stream."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from service.api.errors import openai_problem
from service.api.openai.schemas import Sampled
from service.api.openai.token_text import Offsets, TokenTexts, token_texts
from service.api.sse import event
from service.engine.outputs import TokenLogprobs
from service.errors import FolioError, InvalidRequest, NotFound
from service.runtime import Runtime

T = TypeVar("T")

STREAMED: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}}
"""What a route that can stream may answer, besides JSON."""
MOST_LOGPROBS = 500_000
"""Log-probabilities of one response, each of the likeliest tokens counted: about 40 MB of JSON."""


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


def check_logprobs(
    body: Sampled, prompts: Sequence[int], tokens: int, likeliest: int | None, scored: int | None
) -> None:
    """Refuse more log-probabilities than are given at once. Raises InvalidRequest.

    Args:
        prompts: length of each prompt in tokens. tokens: of each choice, at most.
        likeliest, scored: at each place of a choice, or of a prompt; None for none of them.
    """
    each = 0 if scored is None else sum(prompts) * max(1, scored)
    if not body.stream and likeliest is not None:
        each += len(prompts) * tokens * max(1, likeliest)
    if each * body.n > MOST_LOGPROBS:
        raise InvalidRequest(
            f"These are up to {each * body.n:,} log-probabilities; a response holds {MOST_LOGPROBS:,}.",
            hint="Ask for fewer of the likeliest tokens, fewer choices or less text at a time, or for a stream.",
            param="logprobs" if scored is None else "prompt_logprobs",
        )


async def written(make: Callable[[], T], costly: bool) -> T:
    """What `make` writes; not in the event loop where it may be long."""
    return await asyncio.to_thread(make) if costly else make()


async def encoded(
    runtime: Runtime,
    owner: str,
    texts: Sequence[str],
    encode: Callable[[], T],
    *,
    together: bool = True,
    most: int | None = None,
) -> T:
    """What `encode` makes of texts, in their owner's turn.

    Each, or all `together`, may have `most` tokens: by default as many as the model's window. Raises PromptTooLong.
    """
    prompts: list[Sequence[str]] = [texts] if together else [[text] for text in texts]
    limit = runtime.engine.engine.max_model_len if most is None else most

    def work() -> T:
        for prompt in prompts:
            runtime.chat.encoder.check_length(prompt, limit)
        return encode()

    return await runtime.encoding.run(owner, work)


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
    if not found:
        return []
    texts = token_texts(tokenizer)

    def one(token: int, logprob: float) -> dict[str, Any]:
        data = texts.data(token)
        return {"token": texts.text(token), "logprob": logprob, "bytes": None if data is None else list(data)}

    return [
        one(entry.token_id, entry.logprob)
        | {"top_logprobs": [one(*pair) for pair in _likeliest(entry, len(entry.top))] if entry.top else []}
        for entry in found
    ]


def completion_logprobs(
    texts: TokenTexts, found: Sequence[TokenLogprobs | int], offsets: Offsets, count: int
) -> dict[str, Any]:
    """Log-probabilities as plain completions give them; a bare id is a prompt's first token, which has none.

    offsets: of the text that the tokens are behind, moved on. count: of the likeliest tokens.
    """
    ids = [entry if isinstance(entry, int) else entry.token_id for entry in found]
    told = [None if isinstance(entry, int) else entry for entry in found]
    return {
        "tokens": [texts.text(token) for token in ids],
        "token_logprobs": [entry and entry.logprob for entry in told],
        "top_logprobs": [entry and _by_text(texts, _likeliest(entry, count)) for entry in told],
        "text_offset": [offsets.next(token) for token in ids],
    }


def prompt_logprobs(tokenizer: Any, found: Sequence[TokenLogprobs], count: int) -> list[dict[str, Any] | None]:
    """Log-probabilities of a prompt as vLLM gives them: for each token but the first, by id."""
    texts = token_texts(tokenizer)

    def one(entry: TokenLogprobs) -> dict[str, Any]:
        ranks = {token: place for place, (token, _) in enumerate(entry.top, start=1)} | {entry.token_id: entry.rank}
        return {
            str(token): {"logprob": logprob, "rank": ranks[token], "decoded_token": texts.text(token)}
            for token, logprob in _likeliest(entry, count)
        }

    return [None, *(one(entry) for entry in found)]


def _likeliest(entry: TokenLogprobs, count: int) -> list[tuple[int, float]]:
    """The so many likeliest tokens, and the one of the text where it is none of them."""
    top, own = entry.top[:count], (entry.token_id, entry.logprob)
    return top if any(token == entry.token_id for token, _ in top) else [*top, own]


def _by_text(texts: TokenTexts, found: Sequence[tuple[int, float]]) -> dict[str, float]:
    """By a token's text; of tokens of one text the later ones by their ids."""
    named: dict[str, float] = {}
    for token, logprob in found:
        text = texts.text(token)
        named[f"token_id:{token}" if text in named else text] = logprob
    return named


class Chunks:
    """Writes the chunks of a stream, and what comes behind them; see `service.api.sse.Writer`."""

    def __init__(
        self, path: str, body: Sampled, head: dict[str, Any], prompts: int = 1, lengths: Sequence[int] = ()
    ) -> None:
        """lengths: of each choice's prompt, in tokens, for usage in every chunk."""
        self.stats: dict[int, dict[str, Any]] = {}
        """By the number of the choice, once it has ended."""
        self._path = path
        self._head = head
        self._prompts = prompts
        options = body.stream_options
        self._with_usage = options is not None and options.include_usage
        self._so_far = (
            {number: {"prompt_tokens": length, "output_tokens": 0} for number, length in enumerate(lengths)}
            if options is not None and options.continuous_usage_stats
            else {}
        )

    def count(self, number: int, tokens: int) -> None:
        """A choice has so many more tokens."""
        if self._so_far:
            self._so_far[number]["output_tokens"] += tokens

    def chunk(self, choice: dict[str, Any]) -> bytes:
        """One choice's next piece."""
        now = usage(list(self._so_far.values()), self._prompts) if self._so_far else None
        return event({**self._head, "choices": [choice], **({"usage": now} if self._with_usage or now else {})})

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

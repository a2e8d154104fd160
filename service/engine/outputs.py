"""What a request gets back: step by step, and as a whole."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from service.errors import InvalidRequest


@dataclass
class TokenLogprobs:
    """Log-probability of a token that was chosen or given and of the likeliest ones, of the model's own distribution.

    Attributes:
        rank: how many tokens are likelier, and one.
        top: the likeliest tokens and their log-probabilities, falling.
    """

    token_id: int
    logprob: float
    rank: int
    top: list[tuple[int, float]]


@dataclass
class TokenOutput:
    """What one step brought to one request.

    Attributes:
        pieces: the text that each of ``token_ids`` added; some are empty. The list is empty without a tokenizer.
        sources: per token, who supplied it: a drafter's name or "target".
        prompt_logprobs: of the prompt's tokens but the first, with the first output; None where nobody asked.
        error: why the engine gave up on the request; the refusal, where that is the request's own fault.
    """

    request_id: str
    token_ids: list[int]
    text: str
    finished: bool = False
    finish_reason: str | None = None
    stats: dict[str, Any] = field(default_factory=dict)
    logprobs: list[TokenLogprobs] | None = None
    sources: list[str] = field(default_factory=list)
    pieces: list[str] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprobs] | None = None
    error: str | None = None
    refusal: InvalidRequest | None = None


@dataclass
class Generation:
    """A finished request.

    Attributes:
        times: when each of ``token_ids`` came, in seconds since the request was handed in.
        error: why the engine gave up on it; its ``finish_reason`` is then ``error``.
    """

    token_ids: list[int]
    text: str
    finish_reason: str
    stats: dict[str, Any]
    logprobs: list[TokenLogprobs] | None = None
    sources: list[str] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprobs] | None = None
    error: str | None = None

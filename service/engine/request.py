"""A request: what a client asked for, how far it has come, and what it gets back."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from drafters.protocols import Datastore
from drafters.sampling.choice import Sampling
from drafters.sampling.penalties import Penalties
from service.engine.block_manager import PageDigests, Place
from service.engine.finish import FinishReason, StopChecker
from service.engine.mixture import Mixture
from service.engine.reading import Priority, Reading
from service.engine.sampling.constraint import Constraint
from service.engine.sampling.logits_processor import LogitsProcessor
from service.errors import InvalidRequest
from sparse_attn.kv.lifetimes import PageLifetimes
from sparse_attn.plan.policy import PolicyState


@dataclass(frozen=True)
class SamplingParams:
    """How one request is decoded.

    Attributes:
        max_tokens: at most this many new tokens; at least 1.
        temperature: 0 is greedy; otherwise logits are divided by it.
        top_k: keep the k likeliest tokens; 0 keeps all.
        top_p: keep the likeliest tokens that together reach this probability; 1 keeps all.
        min_p: keep tokens of at least this share of the likeliest one's probability; 0 keeps all.
        frequency_penalty: taken off a token's logit for each time that the answer holds it.
        presence_penalty: taken off a token's logit if the answer holds it.
        repetition_penalty: divides the logits of tokens that prompt or answer hold; 1 changes nothing.
        logit_bias: pairs of a token id and what is added to its logit.
        constraint: what the text must be (JSON of a schema, a regular expression, a grammar), None for anything.
        seed: keys the Gumbel noise together with the position; the same seed gives the same tokens.
        stop: strings that end the text; the text shown ends before them.
        stop_token_ids: token ids that end the sequence, besides the model's own.
        ignore_eos: go on after the model's end-of-sequence tokens.
        logprobs: report the log-probabilities of this many likeliest tokens at each position, None for none.
        drafter: NAME[:key=value,…] of drafters.registry; None for the engine's default.
        attention: NAME[:key=value,…] of sparse_attn.plan.policy; None for the engine's default.
    """

    max_tokens: int = 256
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    constraint: Constraint | None = None
    seed: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    drafter: str | None = None
    attention: str | None = None

    def __post_init__(self) -> None:
        checks = {
            "max_tokens must be at least 1": self.max_tokens >= 1,
            "temperature must be between 0 and 100": 0 <= self.temperature <= 100,
            "top_k must be 0 (all tokens) or more": self.top_k >= 0,
            "top_p must be above 0 and at most 1": 0 < self.top_p <= 1,
            "min_p must be between 0 and 1": 0 <= self.min_p <= 1,
            "frequency_penalty must be between -2 and 2": -2 <= self.frequency_penalty <= 2,
            "presence_penalty must be between -2 and 2": -2 <= self.presence_penalty <= 2,
            "repetition_penalty must be above 0 and at most 100": 0 < self.repetition_penalty <= 100,
            "logit_bias takes token ids of 0 or more, each once, and numbers between -100 and 100": all(
                token >= 0 and -100 <= bias <= 100 for token, bias in self.logit_bias
            )
            and len(dict(self.logit_bias)) == len(self.logit_bias),
            "ignore_eos cannot be had with constrained output": not (self.ignore_eos and self.constraint),
            "seed must fit 63 bits and not be negative": 0 <= self.seed < 2**63,
            "logprobs must be between 0 and 20": self.logprobs is None or 0 <= self.logprobs <= 20,
            "stop takes at most 16 strings of 1 to 1024 characters": len(self.stop) <= 16
            and all(0 < len(s) <= 1024 for s in self.stop),
        }
        for message, fine in checks.items():
            if not fine:
                raise InvalidRequest(f"{message}.", param=message.split()[0])

    @property
    def sampling(self) -> Sampling:
        """What decides the choice of a token, as the drafters know it."""
        return Sampling(self.temperature, self.top_k, self.top_p, self.seed)

    @property
    def penalties(self) -> Penalties:
        """What changes the logits before that, besides a constraint."""
        return Penalties(
            bias=self.logit_bias,
            repetition=self.repetition_penalty,
            frequency=self.frequency_penalty,
            presence=self.presence_penalty,
            min_p=self.min_p,
        )

    @property
    def adjusted(self) -> bool:
        """Whether tokens are chosen from other logits than the model's own."""
        return self.constraint is not None or self.penalties != Penalties()


@dataclass(frozen=True)
class DraftSources:
    """What a request's drafter may draw on besides the prompt; none of it changes the answer.

    Attributes:
        documents: token ids of texts that the answer is likely to repeat.
        prompt: a shortened prompt (retrieved passages and question) for the RAG drafter.
        datastore: continuations in the corpus, as far as the asker may see it.
    """

    documents: Sequence[Sequence[int]] = ()
    prompt: Sequence[int] | None = None
    datastore: Datastore | None = None


@dataclass
class TokenLogprobs:
    """Log-probability of a chosen token and of the likeliest ones, of the model's own distribution."""

    token_id: int
    logprob: float
    top: list[tuple[int, float]]


@dataclass
class TokenOutput:
    """What one step brought to one request.

    Attributes:
        pieces: the text that each of ``token_ids`` added; some are empty. The list is empty without a tokenizer.
        sources: per token, who supplied it: a drafter's name or "target".
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
    error: str | None = None


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
    error: str | None = None


class Request:
    """The state of one request inside the engine.

    Invariants, between steps: ``num_computed`` tokens have their KV in ``pages``; a decoding request has exactly one
    token, the last, that has not. ``pages`` are owned by this request (shared pages by reference count): one `Place`
    for every ``page_size`` tokens, without the pages that ``gone`` names. The last ``num_provisional`` tokens may be
    taken back (`service.engine.mixture`); a ``parked`` request keeps what it has and is not scheduled.
    """

    def __init__(
        self,
        request_id: str,
        prompt_ids: Sequence[int],
        params: SamplingParams,
        draft_sources: DraftSources | None = None,
        stop_checker: StopChecker | None = None,
        reading: Reading | None = None,
    ) -> None:
        self.id = request_id
        self.params = params
        self.draft_sources = draft_sources or DraftSources()
        self.stop_checker = stop_checker or StopChecker(frozenset(params.stop_token_ids), params.max_tokens)
        self.reading = reading
        self.mixture: Mixture | None = None  # None: tokens are chosen from the target's own distribution
        self.token_ids = list(prompt_ids)
        self.prompt_len = len(self.token_ids)
        self.pages: list[Place] = []
        self.num_computed = 0
        self.num_published = 0
        self.num_provisional = 0
        self.parked = False
        self.cached_tokens = 0
        self.miss_reason: str | None = None
        self.refused: tuple[int, int] | None = None  # version of the prefix cache, pages that were not enough
        self.salt = ""
        self.digests: PageDigests  # of its full pages; the scheduler gives it
        self.policy: PolicyState | None = None  # None: dense
        self.logits_processor: LogitsProcessor | None = None  # None: tokens are chosen from the model's own logits
        self.lifetimes: PageLifetimes | None = None  # None: every page is kept to the end
        self.prefill_grid = 0  # chunks end at multiples of this, where the numbers depend on the chunks
        self.draft_budget = 0
        self.preemptions = 0
        self.finish_reason: FinishReason | None = None
        self.steps = 0
        self.arrived = time.perf_counter()
        self.scheduled: float | None = None
        self.first_token: float | None = None
        self.last_token: float | None = None

    @property
    def output_ids(self) -> list[int]:
        return self.token_ids[self.prompt_len : self.num_certain]

    @property
    def num_output(self) -> int:
        return self.num_certain - self.prompt_len

    @property
    def num_certain(self) -> int:
        """Tokens that will not be taken back."""
        return len(self.token_ids) - self.num_provisional

    @property
    def num_final(self) -> int:
        """Tokens in pages that will not be taken back."""
        return min(self.num_computed, self.num_certain)

    @property
    def num_pending(self) -> int:
        """Tokens whose KV is still to be computed; 1 while decoding."""
        return len(self.token_ids) - self.num_computed

    @property
    def decodes(self) -> bool:
        """Whether its next row is that of its last token."""
        return self.num_pending == 1 and not self.parked and self.reading is None

    @property
    def priority(self) -> Priority:
        return self.reading.priority if self.reading is not None else Priority.ANSWER

    @property
    def shares_prefix(self) -> bool:
        """Whether its pages may come from the prefix cache and go there; hidden states come from computing alone."""
        return self.reading is None or self.reading.on_chunk is None

    def gone(self, group: int, num_tokens: int) -> range:
        """Places whose page of a head group no row from number ``num_tokens`` on will read (``block_manager.Gone``)."""
        return self.lifetimes.gone(group, num_tokens) if self.lifetimes is not None else range(0)

    @property
    def max_len(self) -> int:
        """Tokens that the request can ever hold."""
        return self.prompt_len + (self.params.max_tokens if self.reading is None else 0)

    def stats(self) -> dict[str, Any]:
        """Figures of the request so far; times in seconds from its arrival."""
        ttft = self.first_token - self.arrived if self.first_token else None
        rate = None
        if self.first_token and self.last_token and self.num_output > 1 and self.last_token > self.first_token:
            rate = (self.num_output - 1) / (self.last_token - self.first_token)
        return {
            "prompt_tokens": self.prompt_len,
            "output_tokens": self.num_output,
            "cached_tokens": self.cached_tokens,
            "miss_reason": self.miss_reason,
            "queue_s": self.scheduled - self.arrived if self.scheduled else None,
            "ttft_s": ttft,
            "decode_tokens_per_s": rate,
            "preemptions": self.preemptions,
            "decode_steps": self.steps,
            **self._attention_stats(),
        }

    def _attention_stats(self) -> dict[str, Any]:
        if self.policy is None:
            return {"attention": "dense"}
        prefill, decode = self.policy.prefill_stats, self.policy.decode_stats
        return {
            "attention": self.policy.policy.cache_key(),
            "prefill_density": prefill.density,
            "decode_density": decode.density,
            "index_s": prefill.index_seconds + decode.index_seconds,
        }

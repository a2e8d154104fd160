"""What a client asks for: how a request is decoded, and what its drafter may draw on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from drafters.protocols import Datastore
from drafters.sampling.choice import Sampling
from drafters.sampling.penalties import Penalties
from service.engine.sampling.grammars import Constraint
from service.errors import InvalidRequest
from service.owner import present_owner


@dataclass(frozen=True)
class SamplingParams:
    """How one request is decoded.

    Attributes:
        max_tokens: at most this many new tokens; at least 1, or 0 for the prompt's log-probabilities alone.
        temperature: 0 is greedy; otherwise logits are divided by it.
        top_k: keep the k likeliest tokens; 0 keeps all.
        top_p: keep the likeliest tokens that together reach this probability; 1 keeps all.
        min_p: keep tokens of at least this share of the likeliest one's probability; 0 keeps all.
        frequency_penalty: taken off a token's logit for each time that the answer holds it.
        presence_penalty: taken off a token's logit if the answer holds it.
        repetition_penalty: divides the logits of tokens that prompt or answer hold; 1 changes nothing.
        logit_bias: pairs of a token id and what is added to its logit.
        constraint: what the text must be (JSON of a schema, a regular expression, a grammar), None for anything.
        forced: token ids that the output begins with, whatever the model would say; () for none.
        seed: keys the Gumbel noise together with the position; the same seed gives the same tokens.
        stop: strings that end the text; the text shown ends before them.
        stop_token_ids: token ids that end the sequence, besides the model's own.
        ignore_eos: go on after the model's end-of-sequence tokens.
        logprobs: report the log-probabilities of this many likeliest tokens at each position, None for none.
        prompt_logprobs: the same at each position of the prompt but the first, which is read whole for it.
        owner: whose request it is: what drafters learn of it, and its prefix, is for his alone; by default that of the
            caller in whose name this is made (`service.owner`).
        drafter: NAME[:key=value,…] of drafters.registry; None for the engine's default.
        attention: NAME[:key=value,…] of sparse_attn.plan.policy; None for the engine's default.
        from_model: which of these the request left to the model's makers (``SamplingDefaults.fill``); for statistics.
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
    forced: tuple[int, ...] = ()
    seed: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    owner: str = field(default_factory=present_owner)
    drafter: str | None = None
    attention: str | None = None
    from_model: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        checks = {
            "max_tokens must be at least 1": self.max_tokens >= (1 if self.prompt_logprobs is None else 0),
            "temperature must be between 0 and 100": 0 <= self.temperature <= 100,
            "top_k must be 0 (all tokens) or more": self.top_k >= 0,
            "top_p must be above 0 and at most 1": 0 < self.top_p <= 1,
            "min_p must be between 0 and 1": 0 <= self.min_p <= 1,
            "frequency_penalty must be between -2 and 2": -2 <= self.frequency_penalty <= 2,
            "presence_penalty must be between -2 and 2": -2 <= self.presence_penalty <= 2,
            "repetition_penalty must be between 0.01 and 100": 0.01 <= self.repetition_penalty <= 100,
            "logit_bias takes token ids of 0 or more, each once, and numbers between -100 and 100": all(
                token >= 0 and -100 <= bias <= 100 for token, bias in self.logit_bias
            )
            and len(dict(self.logit_bias)) == len(self.logit_bias),
            "ignore_eos cannot be had with constrained output": not (self.ignore_eos and self.constraint),
            "forced cannot be had with a constraint": not (self.forced and self.constraint),
            "seed must fit 63 bits and not be negative": 0 <= self.seed < 2**63,
            "logprobs must be between 0 and 20": self.logprobs is None or 0 <= self.logprobs <= 20,
            "prompt_logprobs must be between 0 and 20": self.prompt_logprobs is None or 0 <= self.prompt_logprobs <= 20,
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

    def described(self) -> dict[str, Any]:
        """How tokens are chosen, and what of it the model's makers say, for statistics."""
        names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
        return {name: getattr(self, name) for name in names} | {"from_model": list(self.from_model)}

    @property
    def adjusted(self) -> bool:
        """Whether tokens are chosen from other logits than the model's own."""
        return self.constraint is not None or bool(self.forced) or self.penalties != Penalties()


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

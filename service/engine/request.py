"""A request: what a client asked for, how far it has come, and what it gets back."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from torch import Tensor

from service.engine.block_manager import PageDigests, Place
from service.engine.finish import FinishReason, StopChecker
from service.engine.mixture import Mixture
from service.engine.outputs import TokenLogprobs
from service.engine.params import DraftSources, SamplingParams
from service.engine.sampling.logits_processor import LogitsProcessor
from sparse_attn.kv.lifetimes import PageLifetimes
from sparse_attn.plan.policy import Policy
from sparse_attn.plan.state import PolicyState


class Priority(IntEnum):
    """Whose rows go first, and whose pages are kept longest; within one, the order of arrival."""

    ANSWER = 0
    DRAFT = 1
    """shares a step's rows with prompts, but takes no page from a request"""
    BACKGROUND = 2
    """what the others leave"""


@dataclass(frozen=True)
class Reading:
    """A request of prefill alone: it ends when its tokens lie in pages, and no token is chosen.

    Attributes:
        on_chunk: called with the number of a chunk's first token and the hidden states [n, d] of its tokens; from the
            first token on again where the request was preempted. Such a reading leaves the prefix cache alone.
        layers: whose states [n, layers, d] it is called with, in place of the last one's after its norm.
        private: it leaves the prefix cache alone without that.
        on_read: called at the end, while the request has its pages.

    Both run in the engine's thread; what they raise fails the request.
    """

    on_chunk: Callable[[int, Tensor], None] | None = None
    on_read: Callable[[Request], None] | None = None
    priority: Priority = Priority.BACKGROUND
    layers: tuple[int, ...] = ()
    private: bool = False

    def take(self, request: Request, start: int, hidden: Tensor | None = None) -> bool:
        """Hand over what was read from ``start`` on; whether that was the last."""
        if self.on_chunk is not None and hidden is not None:
            self.on_chunk(start, hidden)
        if request.num_pending:
            return False
        if self.on_read is not None:
            self.on_read(request)
        return True


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
        self.ahead = 0  # rows that were launched behind the pending token, before what it brings is known
        self.parked = False
        self.scored: list[TokenLogprobs] = []  # of the prompt's tokens from the second on, where they are wanted
        self.cached_tokens = 0
        self.miss_reason: str | None = None
        self.refused: tuple[int, int] | None = None  # version of the prefix cache, pages that were not enough
        self.prefix_owner: str | None = None  # whose requests find its pages; None: everybody's
        self.salt = ""
        self.digests: PageDigests  # of its full pages; the scheduler gives it
        self.policy: PolicyState | None = None  # None: dense
        self.logits_processor: LogitsProcessor | None = None  # None: tokens are chosen from the model's own logits
        self.lifetimes: PageLifetimes | None = None  # None: every page is kept to the end
        self.blend: Policy | None = None  # None: its own tokens alone decide its KV
        self.fills: list[range] = []  # ascending: tokens of the prompt whose KV is copied, never the last
        self.prefill_grid = 0  # chunks end at multiples of this, where the numbers depend on the chunks
        self.draft_budget = 0
        self.state_window = 0  # tokens at the end whose states its drafter reads, and that are therefore computed
        self.preemptions = 0
        self.turn_began = 0  # tokens of its answer when it last got a place
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
    def num_rows_left(self) -> int:
        """Those of them that are computed, not copied."""
        return self.num_pending - sum(len(fill) for fill in self.fills if fill.start >= self.num_computed)

    def stretch(self, count: int) -> tuple[int, list[range]]:
        """How far ``count`` computed tokens reach from where it stands, and what is copied on the way."""
        end, passed = self.num_computed + count, []
        for fill in self.fills:
            if self.num_computed <= fill.start < end:
                passed.append(fill)
                end += len(fill)
        return end, passed

    @property
    def decodes(self) -> bool:
        """Whether its next row is that of its last token."""
        return self.num_pending == 1 and not self.parked and self.reading is None

    @property
    def wants_scores(self) -> bool:
        """Whether log-probabilities of its prompt are still to come."""
        return self.params.prompt_logprobs is not None and len(self.scored) < self.prompt_len - 1

    @property
    def priority(self) -> Priority:
        return self.reading.priority if self.reading is not None else Priority.ANSWER

    @property
    def shares_prefix(self) -> bool:
        """Whether its pages may come from the prefix cache and go there; hidden states come from computing alone."""
        if self.reading is not None:
            return self.reading.on_chunk is None and not self.reading.private
        return self.blend is None

    def gone(self, group: int, num_tokens: int) -> range:
        """Places whose page of a head group no row from number ``num_tokens`` on will read (``block_manager.Gone``)."""
        return self.lifetimes.gone(group, num_tokens) if self.lifetimes is not None else range(0)

    @property
    def lossy_policy(self) -> str | None:
        """The attention policy by which its answer may be another than the model's own; None where it is dense."""
        return self.attention if self.policy is not None or self.fills else None

    @property
    def attention(self) -> str:
        """The name of its attention policy, with all options."""
        policy = self.policy.policy if self.policy is not None else self.blend
        return policy.cache_key() if policy is not None else "dense"

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
            "stopped_by": self.stop_checker.stopped_by,
            "sampling": self.params.described(),
            **self._attention_stats(),
        }

    def _attention_stats(self) -> dict[str, Any]:
        named = {"attention": self.attention}
        if self.policy is None:
            return named
        prefill, decode = self.policy.prefill_stats, self.policy.decode_stats
        return {
            **named,
            "prefill_density": prefill.density,
            "decode_density": decode.density,
            "index_s": prefill.index_seconds + decode.index_seconds,
        }

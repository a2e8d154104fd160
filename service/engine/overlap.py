"""Decode steps that the host reads one step late, so that it schedules while the GPU computes.

A step whose requests want nothing but the next token is launched from the tokens of the step before while these are on
the device only. Its positions, pages and noise do not depend on them. When the next forward is under way the host
reads the tokens, ends what they end and hands them out: it waits for the device once a step, and seldom long. A request
that was found to have ended leaves the step behind, whose row is dropped; what it wrote lies behind the request's last
token, in a page that nobody reads before writing it.

The tokens are those of steps that are read at once (mini-sglang and vLLM schedule likewise). What must know a token
before the next forward runs apart: drafts, constraints, mixtures, policies, log-probabilities, and prompts, whose rows
make other steps. `OverlapStats` says how many steps did and why others did not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from drafters.tree import EMPTY
from drafters.verify import Verdict, verify
from service.engine.runner.model_runner import Forward, ModelRunner
from service.engine.sampling.sampler import RowKeys, choose_tokens
from service.engine.step import Slice, Step
from sparse_attn.host_values import on_device


@dataclass
class OverlapStats:
    """Decode steps by how they ran.

    Attributes:
        overlapped: launched before the tokens of the step before were read.
        apart: steps that were read at once, by why.
    """

    overlapped: int = 0
    apart: Counter[str] = field(default_factory=Counter)

    def as_dict(self) -> dict[str, Any]:
        return {"overlapped": self.overlapped, "apart": dict(self.apart)}


class Flight:
    """A step that was launched and whose tokens nobody has read; a row for each slice."""

    def __init__(self, runner: ModelRunner, step: Step, before: Flight | None = None) -> None:
        """Launch it; its pending tokens are known, or those of the step ``before``."""
        self.step = step
        self.forward: Forward = runner.run(step.slices, None if before is None else before._pending(step.slices))
        self.choices = choose_tokens(
            self.forward.logits,
            RowKeys(
                [part.request.params for part in step.slices],
                [EMPTY] * len(step.slices),
                [part.end for part in step.slices],
            ),
        )
        self._copied: Any = None
        self._host = self.choices
        if self.choices.is_cuda:
            self._host = torch.empty(self.choices.shape, dtype=self.choices.dtype, pin_memory=True)
            self._host.copy_(self.choices, non_blocking=True)
            self._copied = torch.cuda.Event()
            self._copied.record(torch.cuda.current_stream(self.choices.device))

    def _pending(self, behind: Sequence[Slice]) -> Tensor:
        """The tokens int64 [n] that the slices of the next step go on from, on the device."""
        tokens = self.choices.clamp(min=0)  # where none can be chosen the request fails, but the row is computed
        own = [part.request for part in self.step.slices]
        rows = [own.index(part.request) for part in behind]
        return tokens if len(rows) == len(own) else tokens[on_device(rows, torch.int64, tokens.device)]

    def verdicts(self) -> list[Verdict]:
        """What each row came to; waits for this step, and for none behind it."""
        if self._copied is not None:
            self._copied.synchronize()
        return [verify(EMPTY, [token]) for token in self._host.tolist()]


def why_apart(part: Slice) -> str | None:
    """What of a slice must be read before the next forward, in a word; None where nothing must.

    Whether a drafter wants its tokens is for `Drafting.is_plain` to say.
    """
    request = part.request
    if not part.samples or len(part.token_ids) != 1 or part.fills or request.reading is not None:
        return "prompt"
    if part.hidden_rows or part.state_rows:
        return "hidden_states"
    if request.logits_processor is not None:
        return "constraint"
    if request.mixture is not None:
        return "mixture"
    if request.policy is not None or request.lifetimes is not None:
        return "policy"
    if request.params.logprobs is not None:
        return "logprobs"
    return None

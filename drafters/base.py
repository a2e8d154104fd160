"""What a drafter is, and what it sees of a request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from drafters.sampling.choice import Sampling
from drafters.tree import EMPTY, DraftTree
from drafters.verify import Verdict


@dataclass
class RequestState:
    """What a drafter sees of a request; the engine owns it, a drafter only reads it.

    tokens         prompt and committed output; the last one is the root of the next tree. The engine appends
                   a step's emitted tokens *before* it calls `observe`
    prompt_length  how many of `tokens` are the prompt
    documents      token ids of the texts in play that may be copied from (passages, the whole document, …)
    draft_prompt   the shortened prompt of the RAG drafter (retrieved passages and question); None: the
                   drafter selects chunks of the prompt by itself
    stops          tokens that end the output; nothing below one is worth a node
    max_tokens     output tokens at most
    batch_size     sequences in the coming step, this one included; the engine keeps it current
    """

    request_id: str
    tokens: list[int]
    prompt_length: int
    sampling: Sampling = field(default_factory=Sampling)
    documents: Sequence[Sequence[int]] = ()
    draft_prompt: Sequence[int] | None = None
    stops: frozenset[int] = frozenset()
    max_tokens: int = 1 << 30
    batch_size: int = 1

    @property
    def next_position(self) -> int:
        """The position of the token after the root: the key of the root's choice."""
        return len(self.tokens)


@dataclass(frozen=True)
class TopSuccessors:
    """The target's k most probable successors of the rows of a step that were reached, `Verdict.rows`.

    ids int64 [n, k], log_probs float32 [n, k] (unwarped, natural log), both in descending probability.
    """

    ids: np.ndarray
    log_probs: np.ndarray


class Drafter:
    """Guesses for one request; made for it by `registry.build`, sharing tables through `Resources`.

    The engine calls `start` once after the prompt is known, then in every step `propose`, `adjust`, `verify` and
    `observe` in this order, and at last `finish` exactly once, also after an abort. Only `propose` must be written;
    the defaults are those of a lossless drafter that learns nothing. It need not think of bad trees, of tokens that end
    the output, of the step's budget or of its own exceptions: `tracked.TrackedDrafter`, through which alone the engine
    calls it, sees to these. One that raises is dropped for its request; the answer is exact all the same.

    name        as statistics show it, and as the source of its nodes
    lossy       the logits must go through `adjust` before tokens are chosen: the output distribution is another one
    judges      `verify` has a rule of its own, in place of the keyed walk: its trees must stay as they were drawn
    looks       `look` wants the states behind a tree before it is verified
    needs_topk  how many top successors a reached row the coming `observe` wants; 0: none (its `top` is then None)
    appends     rows that `append` wants at least; its trees are so much smaller
    layers      of the target whose states `read` wants (`heads.head.LAST` is the last one's); (): none
    window      of how many of the prompt's last tokens it wants them
    rest        set by `observe`: in so many steps to come it is not asked, and learns nothing of them
    """

    name: str
    lossy: bool = False
    judges: bool = False
    looks: bool = False
    needs_topk: int = 0
    appends: int = 0
    layers: tuple[int, ...] = ()
    window: int = 0
    rest: int = 0

    @property
    def ready(self) -> bool:
        """Whether it has read what it must, so that `propose` may be asked."""
        return True

    def start(self, state: RequestState) -> None:
        """Read the prompt, or begin to: it may be read in the engine's steps, until which it is not `ready`."""

    def read(self, start: int, states: Tensor) -> None:
        """The target's states [n, layers, hidden] after the tokens `start` to `start` + n - 1, once these are certain.

        They come in order, the first ones before `start` is called, and again where a request was preempted.
        """

    def propose(self, state: RequestState, budget: int) -> DraftTree:
        """At most `budget` nodes below state.tokens[-1]; the empty tree is welcome."""
        raise NotImplementedError

    def worth(self, state: RequestState, tree: DraftTree) -> int:
        """How many nodes of the proposed `tree` to verify, the best ones; all of them by default."""
        return len(tree)

    def append(self, state: RequestState, tree: DraftTree, room: int) -> DraftTree:
        """At most `room` rows to be run beside `tree`; nothing is chosen after them, their states come with the tree's.

        Their ids lie beyond the vocabulary (`heads.head.Head.prompts`). Parents are nodes of `tree`, or rows before
        them, numbered on from it.
        """
        return EMPTY

    def adjust(self, state: RequestState, tree: DraftTree, logits: Tensor) -> Tensor:
        """The logits [n + 1, V] of the distribution that a lossy drafter declares, for the rows of `tree`."""
        return logits

    def look(self, tree: DraftTree, states: Tensor) -> None:
        """The target's states [n + 1, layers, hidden] after the rows of `tree`, which is about to be verified;
        behind them those of the rows that were appended."""

    def verify(self, state: RequestState, tree: DraftTree, logits: Tensor, keyed: Verdict) -> Verdict:
        """The verdict on `tree`: `keyed`, that of the keyed walk, or one by the drafter's own rule.

        logits [n + 1, V] are those that tokens are chosen from, before temperature, top-k and top-p.
        """
        return keyed

    def observe(self, state: RequestState, tree: DraftTree, verdict: Verdict, top: TopSuccessors | None) -> None:
        """Learn from a step. `tree` is what was verified, which may be less than was proposed; `verdict.tokens` may
        have been cut short by a stop or the token limit, and is already part of state.tokens."""

    def finish(self, state: RequestState) -> None:
        """Give back what was lent."""


class SourceDrafter(Drafter):
    """A drafter whose guesses are a pure function of the request and some tokens after it.

    `grow` may therefore be asked about a future that is itself guessed (`cascade`, `overlap`); it must not
    change what later calls return.
    """

    def grow(self, state: RequestState, extra: Sequence[int], budget: int) -> DraftTree:
        """At most `budget` nodes below the last of state.tokens + extra."""
        raise NotImplementedError

    def propose(self, state: RequestState, budget: int) -> DraftTree:
        return self.grow(state, (), budget)

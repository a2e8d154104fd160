"""One step of the engine, as plain data: which tokens of which requests run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from drafters.tree import EMPTY, DraftTree
from service.engine.request import Request


@dataclass
class Slice:
    """The part of one request that runs in this step.

    Attributes:
        start: position of the first token, which is also how many tokens lie in pages.
        token_ids: a chunk of the prompt, or the one pending token of a decoding request.
        samples: whether the last of them reaches the end of the sequence, so that logits are wanted.
        tree: a draft below the pending token; None without one.
        appended: rows beside the tree that nothing is chosen after, below it and numbered on from its nodes.
        mutual: whether rows of it that hang below one another see one another both ways.
        draft_budget: most nodes that both may have; their pages are reserved.
        all_logits: logits of every token, not of the last alone.
        hidden_rows: of how many of its last rows the hidden states are wanted.
        state_rows: of how many of its last rows the states of ``layers`` are wanted (`runner.hidden_states`).
        fills: tokens between its own, in order, whose KV is copied before the forward; it passes over them.
        targets: the tokens behind its first rows, where their log-probabilities are wanted; hidden_rows is then all.
        new_pages: how many pages the scheduler took for this step, for the rollback.
    """

    request: Request
    start: int
    token_ids: list[int]
    samples: bool
    tree: DraftTree | None = None
    new_pages: int = 0
    draft_budget: int = 0
    all_logits: bool = False
    hidden_rows: int = 0
    targets: list[int] = field(default_factory=list)
    state_rows: int = 0
    layers: tuple[int, ...] = ()
    fills: Sequence[range] = ()
    appended: DraftTree | None = None
    mutual: bool = False

    @property
    def end(self) -> int:
        """Position behind its last token, which is how many tokens lie in pages afterwards."""
        return self.start + len(self.token_ids) + sum(map(len, self.fills))

    @property
    def runs(self) -> list[Slice]:
        """Itself, cut where it passes over something: each part goes on from all that lies in pages before it."""
        if not self.fills:
            return [self]
        starts = [self.start, *(fill.stop for fill in self.fills)]
        ends = [*(fill.start for fill in self.fills), self.end]
        runs, taken = [], 0
        for start, end in zip(starts, ends, strict=True):
            if start < end:
                runs.append(Slice(self.request, start, self.token_ids[taken : taken + end - start], samples=False))
                taken += end - start
        last = replace(runs[-1], samples=self.samples, all_logits=self.all_logits, hidden_rows=self.hidden_rows)
        return [*runs[:-1], last]

    @property
    def num_rows(self) -> int:
        """Rows of the forward: tokens, tree nodes and what is appended."""
        return len(self.token_ids) + self.num_nodes + (len(self.appended) if self.appended is not None else 0)

    @property
    def num_nodes(self) -> int:
        """Nodes of the tree, after which tokens are chosen."""
        return len(self.tree.tokens) if self.tree is not None else 0

    @property
    def grown(self) -> DraftTree:
        """The tree and what is appended to it, as the forward runs them."""
        if self.appended is None or self.tree is None:
            return self.tree or self.appended or EMPTY
        parts = self.tree, self.appended
        return DraftTree.of(np.concatenate([t.tokens for t in parts]), np.concatenate([t.parents for t in parts]))

    @property
    def sees(self) -> np.ndarray:
        """bool [n + 1, n + 1]: which of the pending token and the n nodes of `grown` a row of these sees."""
        mask = self.grown.ancestor_mask
        if self.mutual:
            mask, behind = mask.copy(), 1 + self.num_nodes
            mask[behind:, behind:] |= mask[behind:, behind:].T
        return mask


@dataclass
class Step:
    """What the scheduler decided for one forward; ``commit`` or ``rollback`` ends it.

    Attributes:
        preempted: requests whose pages went to older ones.
        failed: requests that can have no pages, though nobody else runs, and why.
    """

    slices: list[Slice] = field(default_factory=list)
    preempted: list[Request] = field(default_factory=list)
    failed: list[tuple[Request, Exception]] = field(default_factory=list)

    @property
    def num_rows(self) -> int:
        return sum(s.num_rows for s in self.slices)

    def __bool__(self) -> bool:
        return bool(self.slices)

"""What an engine offers its drafters: models that draft, the corpus, tokenizers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from torch import Tensor


class Growing(Protocol):
    """What a tree is grown over."""

    def extend(self, tokens: Sequence[int], parents: Sequence[int]) -> Tensor:
        """Add speculative nodes and return their logits [len(tokens), V].

        A parent is the number of an earlier node of this session's tree (nodes are numbered 0, 1, … since
        the last `advance`, `commit` or `rollback`) or -1 for the last committed token; parents may be nodes
        of this very call. Positions are length + depth. Costs one forward of len(tokens) rows; earlier nodes
        are not re-run.
        """


class DraftSession(Growing, Protocol):
    """One sequence of a draft model, with its own KV in the pool.

    Committed tokens come first; below the last of them hangs a growing tree of speculative nodes. Nothing is
    ever computed twice: each call states what it costs.
    """

    @property
    def length(self) -> int:
        """Committed tokens whose KV is written."""

    @property
    def ready(self) -> bool:
        """Whether the tokens that it was opened with are read; before, nothing but this and `close` may be asked."""

    def advance(self, token_ids: Sequence[int]) -> Tensor:
        """Drop the speculative nodes, append tokens, return their logits [len(token_ids), V].

        Costs one forward of len(token_ids) rows (at least one token).
        """

    def commit(self, path: Sequence[int]) -> None:
        """Keep the KV of the nodes `path` (a chain from a child of the last committed token), drop the
        others.

        Costs a slot copy, no forward; `length` grows by len(path). An empty path is `rollback`.
        """

    def rollback(self) -> None:
        """Drop all speculative nodes. Free."""

    def close(self) -> None:
        """Return the pages. The session is unusable afterwards; closing twice is allowed."""


class DraftModel(Protocol):
    """A model that drafts: another checkpoint, or the target itself over a shorter prompt."""

    vocab_size: int

    def open(self, token_ids: Sequence[int]) -> DraftSession:
        """A session that is to read all of token_ids (may be empty), sharing cached prefixes where the pool has them.

        They are read in the engine's steps: the session says when it is `ready`.
        """


class ShallowSession(Protocol):
    """States of nodes behind a request's text, of the target's first layers."""

    def shallow(self, tokens: Sequence[int], parents: Sequence[int], layers: int) -> Tensor:
        """Add nodes; what the first layers make of them, [len(tokens), hidden]. The root is node 0 of every tree."""

    def rollback(self) -> None: ...

    def close(self) -> None: ...


class SkipSession(ShallowSession, Protocol):
    """The target itself, drafting over a request's own KV with some layers skipped (SWIFT).

    The request's committed KV is used as it is; the root's KV is not yet written, so the root is node 0 of
    every tree (parent -1, position len(tokens) - 1).
    """

    def extend(self, tokens: Sequence[int], parents: Sequence[int], skipped: frozenset[int]) -> Tensor:
        """As DraftSession.extend, running only the layers not in `skipped` (a skipped layer passes its input
        on)."""


class SkippableModel(Protocol):
    """The engine's hook for self-speculation."""

    num_layers: int
    vocab_size: int

    def attach(self, request_id: str) -> SkipSession:
        """A session over the running request of that id."""


class Target(Protocol):
    """The model whose tokens are guessed, as a trained drafter shares it.

    `layer_config` is transformers' configuration of it, as a mapping.
    """

    name: str
    hidden_size: int
    vocab_size: int
    num_layers: int
    layer_config: Mapping[str, Any]

    def embed(self, ids: Tensor) -> Tensor:
        """What goes into the first layer for token ids [...]: float32 [..., hidden_size]."""

    def output_rows(self, ids: Tensor) -> Tensor:
        """The rows of the output matrix that ids [n] name, float32 [n, hidden_size]."""


class Teacher(Target, Protocol):
    """The target as those see it who train a drafter for it."""

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, no special tokens added."""

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids."""

    def ask(self, text: str) -> list[int]:
        """Token ids of a user's message, as the target is asked: by its chat template, where it has one."""

    def answers(
        self, prompts: Sequence[Sequence[int]], max_tokens: int, temperature: float, seed: int
    ) -> list[list[int]]:
        """The target's own answers."""

    def states(self, token_ids: Sequence[int], layers: Sequence[int]) -> tuple[Tensor, Tensor]:
        """What the target makes of a text: states [n, layers, hidden_size] after each token, and the token that it
        would choose there, int64 [n]."""


class Differentiable(Target, Protocol):
    """The target as a gradient goes through it, to what a drafter puts into it."""

    def through(self, embedded: Tensor, positions: Tensor, seen: Tensor) -> Tensor:
        """The last layer's states [B, n, hidden] of rows that go into the first, [B, n, hidden], at their positions
        int64 [n]; bool [n, n] says which a row sees."""


class Datastore(Protocol):
    """Continuations of a context suffix in a corpus (REST); retrieval's token store satisfies it."""

    tokenizer: str
    """Names the tokenizer whose ids these are; `Resources.tokenizer` must tell the same."""

    def continuations(
        self, context: Sequence[int], max_match: int, min_match: int, max_occurrences: int, length: int
    ) -> tuple[int, np.ndarray]:
        """What follows the longest suffix of `context` (min_match to max_match tokens) that the corpus holds.

        Returns the suffix' length and ids [n, length], n <= max_occurrences, negative behind a document's end;
        (0, an empty array) where no such suffix occurs.
        """


class TextCodec(Protocol):
    """A tokenizer, as re-encoding between two vocabularies needs it."""

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, no special tokens added."""

    def decode(self, ids: Sequence[int]) -> str: ...

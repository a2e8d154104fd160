"""The context of heads whose guesses attend to one another: KV of the pairs in the window, and of the tree's nodes."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from drafters.heads.head import Context, Head, Shallow
from drafters.heads.layers import causal
from drafters.heads.rows import depths_below

KV = tuple[Tensor, Tensor]
"""Keys and values of some rows in one layer, each [n, kv_heads, size]."""


class GrowingHead(Head):
    """A head that makes a state of its own for each pair or node, of which the guess below it is made."""

    bounded = False

    @abstractmethod
    def features(self, states: Tensor) -> Tensor:
        """What it takes of the target's states [..., layers, hidden]: [..., hidden]."""

    @abstractmethod
    def run(
        self, features: Tensor, tokens: Tensor, positions: Tensor, before: Sequence[KV], mask: Tensor
    ) -> tuple[Tensor, list[KV]]:
        """Its own states [n, hidden] of n rows, and their KV in each layer.

        features [n, hidden] are the target's or, below a guess, its own; tokens int64 [n] come after them; `before` has
        the KV of earlier rows in each layer, and mask bool [n, earlier + n] says what a row sees.
        """

    def draft(
        self, features: Tensor, tokens: Tensor, positions: Tensor, before: Sequence[KV], mask: Tensor
    ) -> tuple[Tensor, list[KV]]:
        """`run` for nodes, on which a head may spend less than on the text."""
        return self.run(features, tokens, positions, before, mask)

    @abstractmethod
    def logits(self, own: Tensor) -> Tensor:
        """[n, draft vocabulary] of its own states [n, hidden]."""

    def begin(self, shallow: Shallow | None = None) -> Context:
        return GrowingContext(self)


class GrowingContext(Context):
    """KV of the last `window` pairs; a node is a pair whose state is the head's own."""

    def __init__(self, head: GrowingHead) -> None:
        self._head = head
        self._window = head.config.window
        self._pairs: list[KV] = []
        self._nodes: list[KV] = []
        self._last = 0  # place of the last pair
        self._root = torch.empty(0)  # the head's own state there
        self._own = torch.empty(0)  # of the nodes
        self._parents: list[int] = []
        self._depths: list[int] = []

    def follow(self, states: Tensor, tokens: Tensor, first: int) -> Tensor:
        self.read(states, tokens, first)
        return self._head.logits(self._root)

    def read(self, states: Tensor, tokens: Tensor, first: int) -> None:
        """`follow` without the logits."""
        cut = max(0, len(tokens) - self._window)
        states, tokens, first = states[cut:], tokens[cut:], first + cut
        count, device = len(tokens), states.device
        behind = len(self._pairs[0][0]) if self._pairs else 0
        positions = torch.arange(first, first + count, device=device)
        mask = causal(count, behind, self._window, device)
        own, new = self._head.run(self._head.features(states), tokens, positions, self._pairs, mask)
        self._pairs = latest(joined(self._pairs, new), self._window)
        self._last, self._root = first + count - 1, own[-1:]
        self.drop()

    def drop(self) -> None:
        self._nodes, self._own, self._parents, self._depths = [], self._root[:0], [], []

    def expand(self, tokens: Tensor, parents: Sequence[int]) -> Tensor:
        features = torch.cat([self._root if parent < 0 else self._own[parent : parent + 1] for parent in parents])
        return self.expand_from(features, tokens, parents)

    def expand_from(self, features: Tensor, tokens: Tensor, parents: Sequence[int]) -> Tensor:
        """`expand` with other features [n, hidden] than the head's own states."""
        known, device = len(self._parents), tokens.device
        self._depths += depths_below(parents, self._depths)
        self._parents += parents
        positions = torch.tensor(self._depths[known:], device=device) + self._last
        before = joined(self._pairs, self._nodes)
        own, new = self._head.draft(features, tokens, positions, before, self._mask(known, device))
        self._nodes = joined(self._nodes, new)
        self._own = torch.cat((self._own, own))
        return self._head.logits(own)

    def _mask(self, known: int, device: torch.device) -> Tensor:
        """What the nodes `known:` see: all pairs, their ancestors and themselves."""
        pairs, count = len(self._pairs[0][0]), len(self._parents)
        seen = torch.zeros(count - known, pairs + count, dtype=torch.bool)
        seen[:, :pairs] = True
        for row in range(known, count):
            node = row
            while node >= 0:
                seen[row - known, pairs + node] = True
                node = self._parents[node]
        return seen.to(device)


class RootedContext(Context):
    """A context whose pairs are of the text alone: what stands for the root, which is node 0, and for other nodes
    `states` makes of their tokens and parents. Asked for the root, whose parent is -1, it is to forget the others."""

    def __init__(self, head: GrowingHead, states: Shallow) -> None:
        self._inner = GrowingContext(head)
        self._states = states
        self._root = torch.empty(0, dtype=torch.int64)

    def follow(self, states: Tensor, tokens: Tensor, first: int) -> Tensor:
        self._inner.read(states, tokens, first)
        self._root = tokens[-1:]
        return self._of_root()

    def drop(self) -> None:
        self._inner.drop()
        self._of_root()

    def _of_root(self) -> Tensor:
        """Run the root."""
        return self._inner.expand_from(self._states(self._root, [-1]), self._root, [-1])

    def expand(self, tokens: Tensor, parents: Sequence[int]) -> Tensor:
        parents = [parent + 1 for parent in parents]
        return self._inner.expand_from(self._states(tokens, parents), tokens, parents)


def latest(rows: Sequence[KV], count: int) -> list[KV]:
    """In each layer, the last rows, so many at most."""
    return [(k[-count:], v[-count:]) for k, v in rows]


def joined(some: Sequence[KV], more: Sequence[KV]) -> list[KV]:
    """In each layer, the rows of both; either may have none, in no layer."""
    if not some or not more:
        return [*some, *more]
    return [(torch.cat((a, c), -3), torch.cat((b, d), -3)) for (a, b), (c, d) in zip(some, more, strict=True)]

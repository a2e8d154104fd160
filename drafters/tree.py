"""A tree of guessed tokens, and what a forward over it needs: depths, ancestor mask, merging and trimming."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numba import njit

from drafters.errors import DrafterError

_ANY = np.iinfo(np.int64).max  # above every token id


@njit(cache=True)
def _depths(parents):
    depths = np.zeros(len(parents) + 1, np.int64)
    for node in range(len(parents)):
        depths[node + 1] = depths[parents[node] + 1] + 1
    return depths


@njit(cache=True)
def _ancestors(parents):
    size = len(parents) + 1
    mask = np.zeros((size, size), np.bool_)
    mask[0, 0] = True
    for row in range(1, size):
        mask[row] = mask[parents[row - 1] + 1]
        mask[row, row] = True
    return mask


@njit(cache=True)
def _best(parents, scores, count):
    """The `count` nodes of the highest scores, ascending, where a node's score is at most its parent's."""
    capped = scores.copy()
    for node in range(len(parents)):
        if parents[node] >= 0 and capped[node] > capped[parents[node]]:
            capped[node] = capped[parents[node]]
    # stable: among equals the earlier node, hence an ancestor, comes first
    return np.sort(np.argsort(-capped, kind="mergesort")[:count])


@njit(cache=True)
def _renumbered(parents, kept):
    """The parents of the nodes `kept` by their places among these; -2 for one that is not kept."""
    place = np.full(len(parents) + 1, -2, np.int64)
    place[0] = -1
    place[kept + 1] = np.arange(len(kept))
    return place[parents[kept] + 1]


@njit(cache=True)
def _above(parents, ended):
    """Nodes that have no ancestor in `ended`."""
    kept = np.ones(len(parents), np.bool_)
    for node in range(len(parents)):
        parent = parents[node]
        if parent >= 0 and (ended[parent] or not kept[parent]):
            kept[node] = False
    return kept


@njit(cache=True)
def _merge(tokens, parents, scores, features, origin, count, new_tokens, new_parents, new_scores, new_features, first):
    """Put a tree into the `count` nodes of another; returns the new count.

    Where a node is new or scores higher, origin[node] becomes its number in the new tree, counted from `first`.
    """
    place = np.empty(len(new_tokens), np.int64)
    for node in range(len(new_tokens)):
        parent = new_parents[node]
        under = place[parent] if parent >= 0 else -1
        found = count
        for known in range(under + 1, count):
            if parents[known] == under and tokens[known] == new_tokens[node]:
                found = known
                break
        if found == count:
            count += 1
            tokens[found] = new_tokens[node]
            parents[found] = under
            scores[found] = -1.0
        if new_scores[node] > scores[found]:
            scores[found] = new_scores[node]
            features[found] = new_features[node]
            origin[found] = first + node
        place[node] = found
    return count


@njit(cache=True)
def _faults(tokens, parents, vocab_size):
    """How many parents do not precede their children, and how many tokens are outside the vocabulary."""
    misplaced = unknown = 0
    for node in range(len(parents)):
        misplaced += parents[node] < -1 or parents[node] >= node
        unknown += tokens[node] < 0 or tokens[node] >= vocab_size
    return misplaced, unknown


@dataclass(frozen=True)
class DraftTree:
    """Guesses below the root, which is the last committed token (its KV is not yet written).

    tokens   int64 [n], in topological order: a parent precedes its children
    parents  int64 [n], the index of a node's parent; -1 = child of the root
    scores   float64 [n], estimated probability that the node is accepted (in [0, 1], at most its parent's)
    sources  n names of the drafters that proposed the nodes
    features int64 [n], the nodes' cells in `calibration.Calibration`; -1 = none

    A verification forward has rows [root] + nodes: row 0 is the root, row i + 1 is node i.
    """

    tokens: np.ndarray
    parents: np.ndarray
    scores: np.ndarray
    sources: tuple[str, ...]
    features: np.ndarray

    @classmethod
    def of(
        cls,
        tokens: Sequence[int] | np.ndarray,
        parents: Sequence[int] | np.ndarray,
        scores: Sequence[float] | np.ndarray | None = None,
        source: str | Sequence[str] = "draft",
        features: Sequence[int] | np.ndarray | None = None,
    ) -> DraftTree:
        """Any sequences as a tree; scores default to 1, one source name stands for all nodes. Nothing is checked:
        what a drafter proposes is validated where it comes to the engine (`tracked`)."""
        count = len(tokens)
        names = (source,) * count if isinstance(source, str) else tuple(source)
        return cls(
            tokens=np.asarray(tokens, dtype=np.int64),
            parents=np.asarray(parents, dtype=np.int64),
            scores=np.ones(count) if scores is None else np.asarray(scores, dtype=np.float64),
            sources=names,
            features=np.full(count, -1) if features is None else np.asarray(features, dtype=np.int64),
        )

    @classmethod
    def chain(cls, tokens: Sequence[int], scores: Sequence[float] | None = None, source: str = "draft") -> DraftTree:
        """One branch."""
        return cls.of(tokens, range(-1, len(tokens) - 1), scores, source)

    def __len__(self) -> int:
        return len(self.tokens)

    def validate(self, vocab_size: int | None = None) -> None:
        """Raise DrafterError unless the arrays agree in length, parents precede children and ids are in range."""
        count = len(self.tokens)
        if not count == len(self.parents) == len(self.scores) == len(self.sources) == len(self.features):
            parts = {name: len(getattr(self, name)) for name in ("parents", "scores", "sources", "features")}
            raise DrafterError(f"a tree of {count} tokens needs {count} entries of each part, not {parts}")
        misplaced, unknown = _faults(self.tokens, self.parents, _ANY if vocab_size is None else vocab_size)
        if misplaced:
            raise DrafterError("a tree's parents must precede their children (-1 = child of the root)")
        if unknown:
            raise DrafterError(f"a tree holds a token id outside the vocabulary ({vocab_size} ids)")

    @cached_property
    def depths(self) -> np.ndarray:
        """int64 [n + 1]: the depth of each row, 0 for the root. position = position(root) + depth."""
        return _depths(self.parents)

    @cached_property
    def ancestor_mask(self) -> np.ndarray:
        """bool [n + 1, n + 1]: row i sees row j iff j is i or an ancestor of i; row and column 0 are the
        root."""
        return _ancestors(self.parents)

    def path_to(self, node: int) -> list[int]:
        """The nodes from a child of the root down to `node`."""
        path = []
        while node >= 0:
            path.append(node)
            node = int(self.parents[node])
        return path[::-1]

    def ended_by(self, stops: frozenset[int]) -> DraftTree:
        """Without the nodes below a token of `stops`: nothing is emitted after it."""
        if stops.isdisjoint(self.tokens.tolist()):
            return self
        kept = _above(self.parents, np.isin(self.tokens, list(stops)))
        return self if kept.all() else self.select(np.flatnonzero(kept))

    def trim(self, budget: int) -> DraftTree:
        """The `budget` nodes of the highest scores, ancestors included; the order of nodes is kept.

        A node's score counts as at most its parent's, so the kept set is closed under ancestors.
        """
        if len(self) <= budget:
            return self
        return self.select(_best(self.parents, self.scores, max(budget, 0)))

    def select(self, kept: np.ndarray | Sequence[int]) -> DraftTree:
        """The sub-tree of the nodes `kept` (ascending, closed under ancestors)."""
        kept = np.asarray(kept, dtype=np.int64)
        return DraftTree(
            tokens=self.tokens[kept],
            parents=_renumbered(self.parents, kept),
            scores=self.scores[kept],
            sources=tuple(self.sources[node] for node in kept.tolist()),
            features=self.features[kept],
        )


EMPTY = DraftTree.of([], [])


def fuse(trees: Iterable[DraftTree]) -> DraftTree:
    """One tree by longest-prefix matching (RASD, arXiv 2503.03434, section 3.3).

    Nodes whose paths spell the same tokens become one; the best score survives, with the source that gave it.
    Duplicates vanish.
    """
    merged = list(trees)
    size = sum(map(len, merged))
    tokens, parents, features, origin = (np.empty(size, dtype=np.int64) for _ in range(4))
    scores = np.empty(size)
    sources: list[str] = []
    count = 0
    for tree in merged:
        new = tree.tokens, tree.parents, tree.scores, tree.features
        count = _merge(tokens, parents, scores, features, origin, count, *new, len(sources))
        sources += tree.sources
    names = [sources[node] for node in origin[:count].tolist()]
    return DraftTree.of(tokens[:count], parents[:count], scores[:count], names, features[:count])

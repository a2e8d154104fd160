"""A tree of guessed tokens, and what a forward over it needs: depths, ancestor mask, merging and trimming."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from drafters.errors import DrafterError


@dataclass(frozen=True)
class DraftTree:
    """Guesses below the root, which is the last committed token (its KV is not yet written).

    tokens   int64 [n], in topological order: a parent precedes its children
    parents  int64 [n], the index of a node's parent; -1 = child of the root
    scores   float64 [n], estimated probability that the node is accepted (in [0, 1], at most its parent's)
    sources  n names of the drafters that proposed the nodes
    features int64 [n], the nodes' cells in `calibration.Calibration`; -1 = none
    q        float64 [n + 1, V], the distribution from which the children of the root (row 0) and of node i
             (row i + 1) were drawn without replacement, in order; only for `multi_round`. Pruning or fusing
             drops it.

    A verification forward has rows [root] + nodes: row 0 is the root, row i + 1 is node i.
    """

    tokens: np.ndarray
    parents: np.ndarray
    scores: np.ndarray
    sources: tuple[str, ...]
    features: np.ndarray
    q: Tensor | None = field(default=None, compare=False)

    @classmethod
    def of(
        cls,
        tokens: Sequence[int] | np.ndarray,
        parents: Sequence[int] | np.ndarray,
        scores: Sequence[float] | np.ndarray | None = None,
        source: str | Sequence[str] = "draft",
        features: Sequence[int] | np.ndarray | None = None,
        q: Tensor | None = None,
    ) -> DraftTree:
        """Build and validate a tree; scores default to 1, one source name stands for all nodes."""
        count = len(tokens)
        names = (source,) * count if isinstance(source, str) else tuple(source)
        tree = cls(
            tokens=np.asarray(tokens, dtype=np.int64),
            parents=np.asarray(parents, dtype=np.int64),
            scores=np.ones(count) if scores is None else np.asarray(scores, dtype=np.float64),
            sources=names,
            features=np.full(count, -1) if features is None else np.asarray(features, dtype=np.int64),
            q=q,
        )
        tree.validate()
        return tree

    @classmethod
    def chain(cls, tokens: Sequence[int], scores: Sequence[float] | None = None, source: str = "draft") -> DraftTree:
        """One branch."""
        return cls.of(tokens, range(-1, len(tokens) - 1), scores, source)

    def __len__(self) -> int:
        return len(self.tokens)

    def validate(self, vocab_size: int | None = None) -> None:
        """Raise DrafterError unless the arrays agree in length, parents precede children and ids are in
        range."""
        count = len(self.tokens)
        parts = {name: len(getattr(self, name)) for name in ("parents", "scores", "sources", "features")}
        if any(length != count for length in parts.values()):
            raise DrafterError(f"a tree of {count} tokens needs {count} entries of each part, not {parts}")
        if not count:
            return
        if (self.parents < -1).any() or (self.parents >= np.arange(count)).any():
            raise DrafterError("a tree's parents must precede their children (-1 = child of the root)")
        if (self.tokens < 0).any() or (vocab_size is not None and (self.tokens >= vocab_size).any()):
            raise DrafterError(f"a tree holds a token id outside the vocabulary ({vocab_size} ids)")

    @property
    def depths(self) -> np.ndarray:
        """int64 [n + 1]: the depth of each row, 0 for the root. position = position(root) + depth."""
        depths = np.zeros(len(self) + 1, dtype=np.int64)
        for row, parent in enumerate(self.parents.tolist(), start=1):
            depths[row] = depths[parent + 1] + 1
        return depths

    @property
    def ancestor_mask(self) -> np.ndarray:
        """bool [n + 1, n + 1]: row i sees row j iff j is i or an ancestor of i; row and column 0 are the
        root."""
        size = len(self) + 1
        mask = np.eye(size, dtype=bool)
        for row, parent in enumerate(self.parents.tolist(), start=1):
            mask[row] |= mask[parent + 1]
        return mask

    def children(self) -> list[dict[int, int]]:
        """For each row, token -> node of its children; of duplicates the first."""
        children: list[dict[int, int]] = [{} for _ in range(len(self) + 1)]
        for node, (token, parent) in enumerate(zip(self.tokens.tolist(), self.parents.tolist(), strict=True)):
            children[parent + 1].setdefault(token, node)
        return children

    def path_to(self, node: int) -> list[int]:
        """The nodes from a child of the root down to `node`."""
        path = []
        while node >= 0:
            path.append(node)
            node = int(self.parents[node])
        return path[::-1]

    def ended_by(self, stops: frozenset[int]) -> DraftTree:
        """Without the nodes below a token of `stops`: nothing is emitted after it. Drops q if any goes."""
        if not stops or not len(self):
            return self
        ended = np.isin(self.tokens, list(stops))
        useless = np.zeros(len(self), dtype=bool)
        for node, parent in enumerate(self.parents.tolist()):
            useless[node] = parent >= 0 and (ended[parent] or useless[parent])
        return self.select(np.flatnonzero(~useless)) if useless.any() else self

    def trim(self, budget: int) -> DraftTree:
        """The `budget` nodes of the highest scores, ancestors included; the order of nodes is kept.

        A node's score counts as at most its parent's, so the kept set is closed under ancestors. Drops q.
        """
        if len(self) <= budget:
            return self
        capped = self.scores.copy()
        for node, parent in enumerate(self.parents.tolist()):
            if parent >= 0:
                capped[node] = min(capped[node], capped[parent])
        # stable: among equals the earlier node, hence an ancestor, comes first
        return self.select(np.sort(np.argsort(-capped, kind="stable")[: max(budget, 0)]))

    def select(self, kept: np.ndarray | Sequence[int]) -> DraftTree:
        """The sub-tree of the nodes `kept` (ascending, closed under ancestors). Drops q."""
        kept = np.asarray(kept, dtype=np.int64)
        new_index = np.full(len(self) + 1, -2, dtype=np.int64)
        new_index[0] = -1
        new_index[kept + 1] = np.arange(len(kept))
        tree = DraftTree(
            tokens=self.tokens[kept],
            parents=new_index[self.parents[kept] + 1],
            scores=self.scores[kept],
            sources=tuple(self.sources[node] for node in kept.tolist()),
            features=self.features[kept],
        )
        tree.validate()
        return tree


EMPTY = DraftTree.of([], [])


def fuse(trees: Iterable[DraftTree]) -> DraftTree:
    """One tree by longest-prefix matching (RASD, arXiv 2503.03434, section 3.3).

    Nodes whose paths spell the same tokens become one; the best score survives, with the source that gave it.
    Drops q. Duplicates vanish.
    """
    tokens: list[int] = []
    parents: list[int] = []
    scores: list[float] = []
    sources: list[str] = []
    features: list[int] = []
    index: dict[tuple[int, int], int] = {}
    for tree in trees:
        place = [-1] * (len(tree) + 1)
        nodes = zip(tree.tokens.tolist(), tree.parents.tolist(), strict=True)
        for node, (token, parent) in enumerate(nodes):
            key = (place[parent + 1], token)
            found = index.get(key)
            if found is None:
                found = index[key] = len(tokens)
                tokens.append(token)
                parents.append(key[0])
                scores.append(0.0)
                sources.append("")
                features.append(-1)
            if tree.scores[node] > scores[found] or not sources[found]:
                scores[found] = float(tree.scores[node])
                sources[found] = tree.sources[node]
                features[found] = int(tree.features[node])
            place[node + 1] = found
    return DraftTree.of(tokens, parents, scores, sources, features)

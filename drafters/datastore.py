"""REST (arXiv 2311.08252): what followed the last tokens anywhere in the corpus.

The longest suffix of the context that occurs in the datastore is looked up; its continuations form a trie
whose nodes are weighted by how many continuations pass through them; the best are kept. The paper's rule for
sampling is biased; here the tree goes through the same verification as any other.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from drafters.base import Datastore, RequestState, SourceDrafter
from drafters.calibration import Calibration
from drafters.errors import DrafterError
from drafters.suffix import prior_cells
from drafters.tree import EMPTY, DraftTree

_SHARES = [0.1, 0.25, 0.5, 0.75, 0.999]


class DatastoreDrafter(SourceDrafter):
    """The drafter `datastore`; one request."""

    name = "datastore"

    def __init__(
        self,
        calibration: Calibration,
        store: Datastore,
        *,
        max_suffix: int = 16,
        min_suffix: int = 2,
        matches: int = 512,
        length: int = 10,
        min_score: float = 0.05,
    ) -> None:
        if min_suffix > max_suffix:
            raise DrafterError(f"datastore: min_suffix {min_suffix} exceeds max_suffix {max_suffix}")
        self._cells = calibration.cells
        self._offset = calibration.block(self.name, prior_cells())
        self._store = store
        self._max_suffix = max_suffix
        self._min_suffix = min_suffix
        self._matches = matches
        self._length = length
        self._min_score = min_score

    def grow(self, state: RequestState, extra: Sequence[int], budget: int) -> DraftTree:
        context = [*state.tokens[-self._max_suffix :], *extra]
        matched, found = self._store.continuations(
            context, self._max_suffix, self._min_suffix, self._matches, self._length
        )
        if not matched or budget < 1:
            return EMPTY
        tokens, parents, shares = count_prefixes(found)
        features = self._offset + _cells(matched, shares, parents)
        scores = np.empty(len(tokens))
        for node, parent in enumerate(parents.tolist()):
            scores[node] = self._cells[features[node]] * (scores[parent] if parent >= 0 else 1.0)
        tree = DraftTree.of(tokens, parents, scores, self.name, features)
        return tree.select(np.flatnonzero(tree.scores >= self._min_score)).trim(budget)


def count_prefixes(continuations: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The trie of rows [m, L], negative behind their ends: tokens, parents, each node's share of its parent's rows."""
    rows = continuations[np.lexsort(continuations.T[::-1])]
    tokens: list[int] = []
    parents: list[int] = []
    shares: list[float] = []
    owner = np.full(len(rows), -1)
    weight = {-1: len(rows)}
    starts = np.zeros(len(rows), dtype=bool)
    starts[0] = True
    for column in rows.T:
        starts[1:] |= column[1:] != column[:-1]
        groups = np.flatnonzero(starts)
        sizes = np.diff(np.append(groups, len(rows)))
        new_owner = owner.copy()
        for first, size in zip(groups.tolist(), sizes.tolist(), strict=True):
            if column[first] < 0 or owner[first] == -2:
                new_owner[first : first + size] = -2
                continue
            parent = int(owner[first])
            new_owner[first : first + size] = len(tokens)
            weight[len(tokens)] = size
            tokens.append(int(column[first]))
            parents.append(parent)
            shares.append(size / weight[parent])
        owner = new_owner
    return np.array(tokens, dtype=np.int64), np.array(parents, dtype=np.int64), np.array(shares)


def _cells(matched: int, shares: np.ndarray, parents: np.ndarray) -> np.ndarray:
    """Calibration cells as `suffix` has them: the match grows with the depth."""
    depth = np.zeros(len(parents) + 1, dtype=np.int64)
    for node, parent in enumerate(parents.tolist(), start=1):
        depth[node] = depth[parent + 1] + 1
    length = matched + depth[1:] - 1
    classes = np.digitize(length, [2, 3, 4, 5, 9, 17, 33, 65])
    return classes * (len(_SHARES) + 1) + np.digitize(shares, _SHARES)

"""REST (arXiv 2311.08252): what followed the last tokens anywhere in the corpus.

The longest suffix of the context that occurs in the datastore is looked up; its continuations form a trie
whose nodes are weighted by how many continuations pass through them; the best are kept. The paper's rule for
sampling is biased; here the tree goes through the same verification as any other.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numba import njit

from drafters.base import RequestState, SourceDrafter
from drafters.calibration import Calibration
from drafters.options import DatastoreOptions
from drafters.protocols import Datastore
from drafters.sources.automaton import match_bucket, ratio_bucket
from drafters.sources.suffix import prior_cells
from drafters.tree import EMPTY, DraftTree


class DatastoreDrafter(SourceDrafter):
    """The drafter `datastore`; one request."""

    name = "datastore"

    def __init__(self, calibration: Calibration, store: Datastore, options: DatastoreOptions) -> None:
        self._cells = calibration.cells
        self._offset = calibration.block(self.name, prior_cells())
        self._store = store
        self._options = options

    def grow(self, state: RequestState, extra: Sequence[int], budget: int) -> DraftTree:
        options = self._options
        context = [*state.tokens[-options.max_suffix :], *extra]
        matched, found = self._store.continuations(
            context, options.max_suffix, options.min_suffix, options.matches, options.length
        )
        if not matched or budget < 1:
            return EMPTY
        tokens, parents, shares = count_prefixes(found)
        scores, features = _scored(parents, shares, matched, self._cells, self._offset)
        tree = DraftTree.of(tokens, parents, scores, self.name, features)
        return tree.select(np.flatnonzero(tree.scores >= options.min_score)).trim(budget)


@njit(cache=True)
def count_prefixes(continuations):
    """The trie of rows int64 [m, L], negative behind their ends: tokens, parents, each node's share of its parent's
    rows."""
    rows, length = continuations.shape
    tokens, parents = np.empty(rows * length, np.int64), np.empty(rows * length, np.int64)
    count = np.zeros(rows * length, np.int64)
    youngest = np.full(rows * length + 1, -1)  # child of each node, the root's first
    elder = np.empty(rows * length, np.int64)  # the child before it
    nodes = 0
    for row in range(rows):
        parent = -1
        for column in range(length):
            token = continuations[row, column]
            if token < 0:
                break
            node = youngest[parent + 1]
            while node >= 0 and tokens[node] != token:
                node = elder[node]
            if node < 0:
                node = nodes
                nodes += 1
                tokens[node], parents[node] = token, parent
                elder[node], youngest[parent + 1] = youngest[parent + 1], node
            count[node] += 1
            parent = node
    shares = np.empty(nodes)
    for node in range(nodes):
        shares[node] = count[node] / (count[parents[node]] if parents[node] >= 0 else rows)
    return tokens[:nodes], parents[:nodes], shares


@njit(cache=True)
def _scored(parents, shares, matched, cells, offset):
    """Path scores and calibration cells, which are as `suffix` has them: the match grows with the depth."""
    scores, features = np.empty(len(parents)), np.empty(len(parents), np.int64)
    length = np.empty(len(parents), np.int64)
    for node in range(len(parents)):
        parent = parents[node]
        length[node] = length[parent] + 1 if parent >= 0 else matched
        features[node] = offset + match_bucket(length[node]) * 6 + ratio_bucket(shares[node])
        scores[node] = cells[features[node]] * (scores[parent] if parent >= 0 else 1.0)
    return scores, features

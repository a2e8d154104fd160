"""Token Recycling (arXiv 2408.08696): the successors the target last ranked highest after each token.

A matrix [V, k] holds, for every token, the k most probable successors at its last appearance. The tree is grown
breadth- and best-first from it. The matrix is shared by all requests of an owner. The paper also learns from nodes
that were rejected; what follows them follows a text that is not there, and less of what is guessed from it is accepted.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numba import njit

from drafters.base import RequestState, SourceDrafter, TopSuccessors
from drafters.calibration import Calibration
from drafters.options import RecyclingOptions
from drafters.sources.heap import pop, push
from drafters.tree import EMPTY, DraftTree
from drafters.verify import Verdict


@njit(cache=True)
def _expand(root, successors, confidence, budget, max_depth, min_score, cells, offset):
    """Best-first growth by the product of the calibrated probabilities along a path."""
    ranks = successors.shape[1]
    capacity = (budget + 1) * ranks + 1
    item_token = np.empty(capacity, np.int64)
    item_parent = np.empty(capacity, np.int64)
    item_score = np.empty(capacity, np.float64)
    item_cell = np.empty(capacity, np.int64)
    heap_score = np.empty(capacity, np.float64)
    heap_item = np.empty(capacity, np.int64)
    tokens = np.empty(budget, np.int64)
    parents = np.empty(budget, np.int64)
    scores = np.empty(budget, np.float64)
    features = np.empty(budget, np.int64)
    depth = np.empty(budget, np.int64)
    items = heap = nodes = 0
    parent, token, score, level = -1, root, 1.0, 0
    while True:
        if level < max_depth:
            for rank in range(ranks):
                if successors[token, rank] < 0:
                    break
                cell = offset + rank * 6 + confidence[token, rank]
                value = score * cells[cell]
                if value < min_score:
                    continue
                item_token[items] = successors[token, rank]
                item_parent[items] = parent
                item_score[items] = value
                item_cell[items] = cell
                heap = push(heap_score, heap_item, heap, value, items)
                items += 1
        if heap == 0 or nodes == budget:
            break
        item, heap = pop(heap_score, heap_item, heap)
        tokens[nodes] = item_token[item]
        parents[nodes] = item_parent[item]
        scores[nodes] = item_score[item]
        features[nodes] = item_cell[item]
        level = 1 if item_parent[item] < 0 else depth[item_parent[item]] + 1
        depth[nodes] = level
        parent, token, score = nodes, item_token[item], item_score[item]
        nodes += 1
    return tokens[:nodes], parents[:nodes], scores[:nodes], features[:nodes]


_BORDERS = np.log([0.02, 0.1, 0.3, 0.6, 0.9])  # between the classes of a probability


@njit(cache=True)
def _keep(tokens, ids, log_probs, borders, table_ids, table_confidence):
    for row, token in enumerate(tokens):
        for rank in range(min(ids.shape[1], table_ids.shape[1])):
            confidence = 0
            while confidence < len(borders) and log_probs[row, rank] >= borders[confidence]:
                confidence += 1
            table_ids[token, rank] = ids[row, rank]
            table_confidence[token, rank] = confidence


class SuccessorTable:
    """The matrix: ids int32 [V, k] (-1 = not seen) and the class of each one's probability, uint8 [V, k]."""

    def __init__(self, vocab_size: int, ranks: int = 8) -> None:
        self.ids = np.full((vocab_size, ranks), -1, dtype=np.int32)
        self.confidence = np.zeros((vocab_size, ranks), dtype=np.uint8)

    @property
    def ranks(self) -> int:
        return self.ids.shape[1]

    @property
    def nbytes(self) -> int:
        return self.ids.nbytes + self.confidence.nbytes

    def update(self, tokens: np.ndarray, top: TopSuccessors) -> None:
        """Set the successors of the tokens [n]; of a token that comes twice the last row stays."""
        _keep(tokens, top.ids, top.log_probs, _BORDERS, self.ids, self.confidence)


def prior_cells(ranks: int) -> np.ndarray:
    """First estimates [rank, class of the probability], as SmolLM2's answers to Spec-Bench's questions have them."""
    rank = np.maximum(0.2, 0.6 ** np.arange(ranks))[:, None]
    confidence = np.array([0.06, 0.13, 0.19, 0.27, 0.36, 0.48])[None, :]
    return rank * confidence


class Recycling(SourceDrafter):
    """The drafter `recycling`; one request over its owner's table."""

    name = "recycling"

    def __init__(self, calibration: Calibration, table: SuccessorTable, options: RecyclingOptions) -> None:
        self._cells = calibration.cells
        self._offset = calibration.block(f"{self.name}/{table.ranks}", prior_cells(table.ranks))
        self._table = table
        self._depth = options.depth
        self._min_score = options.min_score
        self.needs_topk = table.ranks

    def grow(self, state: RequestState, extra: Sequence[int], budget: int) -> DraftTree:
        if budget < 1:
            return EMPTY
        root = extra[-1] if len(extra) else state.tokens[-1]
        tokens, parents, scores, features = _expand(
            root,
            self._table.ids,
            self._table.confidence,
            budget,
            self._depth,
            self._min_score,
            self._cells,
            self._offset,
        )
        return DraftTree.of(tokens, parents, scores, self.name, features)

    def observe(self, state: RequestState, tree: DraftTree, verdict: Verdict, top: TopSuccessors | None) -> None:
        if top is None:
            return
        root = state.tokens[-1 - len(verdict.tokens)]
        self._table.update(np.array([root, *tree.tokens[list(verdict.path)]]), top)

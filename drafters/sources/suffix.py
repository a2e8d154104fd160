"""Copy what followed the last tokens earlier: in this request, and in the documents in play.

SAM-Decoding (arXiv 2411.10666) finds the longest suffix of the context that occurred before, in an automaton
grown token by token over the request and in a static one over the documents. SuffixDecoding (arXiv
2411.04975) turns the continuations into a tree, best-first by their counts, no deeper than a factor of the
match length.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import numpy as np

from drafters.base import RequestState, SourceDrafter
from drafters.calibration import Calibration
from drafters.options import SuffixOptions
from drafters.sources.automaton import SEPARATOR, SuffixAutomaton
from drafters.tree import EMPTY, DraftTree, fuse

_MATCH_CLASSES = 9
_RATIO_CLASSES = 6
_RESERVE = 2048


def prior_cells() -> np.ndarray:
    """First estimates [match length class, share class]: long matches and undisputed continuations are trusted, as
    far as answers of SmolLM2 to Spec-Bench's questions have borne them out."""
    length = np.array([0.36, 0.53, 0.67, 0.74, 0.76, 0.85, 0.95, 0.96, 0.97])[:, None]
    share = np.array([0.12, 0.16, 0.3, 0.75, 0.95, 1.0])[None, :]
    return share * length


class DocumentAutomata:
    """Static automata over sets of documents, kept for later requests over the same ones (least recently used
    out)."""

    def __init__(self, capacity: int = 8) -> None:
        self._capacity = capacity
        self._kept: OrderedDict[tuple[bytes, ...], SuffixAutomaton] = OrderedDict()

    @property
    def nbytes(self) -> int:
        return sum(len(array) for key in self._kept for array in key) + sum(a.nbytes for a in self._kept.values())

    def over(self, documents: Sequence[Sequence[int]]) -> SuffixAutomaton:
        """The automaton over the documents, separated so that no guess runs from one into the next."""
        arrays = [np.asarray(document, dtype=np.int32) for document in documents]
        key = tuple(array.tobytes() for array in arrays)
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        automaton = SuffixAutomaton(sum(map(len, arrays)) + len(arrays))
        for array in arrays:
            automaton.append(array)
            automaton.append([SEPARATOR])
        self._kept[key] = automaton
        if len(self._kept) > self._capacity:
            self._kept.popitem(last=False)
        return automaton


class Suffix(SourceDrafter):
    """The drafter `suffix`; one request."""

    name = "suffix"

    def __init__(
        self, calibration: Calibration, automata: DocumentAutomata, options: SuffixOptions, starts: int = 3
    ) -> None:
        self._cells = calibration.cells
        self._offset = calibration.block(self.name, prior_cells())
        self._automata = automata
        self._options = options
        self._starts = starts
        self._documents: SuffixAutomaton | None = None
        self._document_match = (0, 0)
        self._request = SuffixAutomaton(16)

    def start(self, state: RequestState) -> None:
        self._request = SuffixAutomaton(len(state.tokens) + _RESERVE)
        if state.documents:
            self._documents = self._automata.over(state.documents)
        self._sync(state)

    def grow(self, state: RequestState, extra: Sequence[int], budget: int) -> DraftTree:
        self._sync(state)
        trees = [self._grow(self._request, self._request.walk(extra, self._request.repeated()), budget)]
        if self._documents is not None:
            match = self._documents.walk(extra, self._document_match)
            trees.append(self._grow(self._documents, match, budget))
        trees = [tree for tree in trees if len(tree)]
        if len(trees) < 2:
            return trees[0] if trees else EMPTY
        return fuse(trees).trim(budget)

    def _sync(self, state: RequestState) -> None:
        new = state.tokens[len(self._request) :]
        if not new:
            return
        self._request.append(new)
        if self._documents is not None:
            self._document_match = self._documents.walk(new, self._document_match)

    def _grow(self, automaton: SuffixAutomaton, match: tuple[int, int], budget: int) -> DraftTree:
        state, matched = match
        if not state or matched < self._options.min_match or budget < 1:
            return EMPTY
        tokens, parents, scores, features = automaton.expand(
            match,
            self._options.min_match,
            self._starts,
            budget,
            max(1, int(self._options.factor * matched)),
            self._options.min_score,
            self._options.branching,
            self._cells,
            self._offset,
        )
        return DraftTree.of(tokens, parents, scores, self.name, features)

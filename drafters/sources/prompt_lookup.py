"""Prompt lookup (Saxena 2023; `prompt_lookup_num_tokens` in transformers): copy what followed the last
n-gram."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numba import njit

from drafters.base import RequestState, SourceDrafter
from drafters.calibration import Calibration
from drafters.options import PromptLookupOptions
from drafters.tree import EMPTY, DraftTree


@njit(cache=True)
def _last_occurrence(text, size, ngram, with_extra):
    """Where the most recent earlier occurrence of `ngram` in text[:size] ends, or -1.

    The text's own tail is skipped unless extra tokens follow it.
    """
    n = len(ngram)
    end = size if with_extra else size - 1
    while end >= n:
        equal = True
        for i in range(n):
            if text[end - 1 - i] != ngram[n - 1 - i]:
                equal = False
                break
        if equal:
            return end
        end -= 1
    return -1


class PromptLookup(SourceDrafter):
    """The drafter `prompt_lookup`: n-grams from the longest to the shortest, one branch; one request."""

    name = "prompt_lookup"

    def __init__(self, calibration: Calibration, options: PromptLookupOptions) -> None:
        prior = np.linspace(0.5, 0.8, options.ngram)
        self._cells = calibration.cells
        self._offset = calibration.block(f"{self.name}/{options.ngram}", prior)
        self._ngram = options.ngram
        self._length = options.length
        self._text = np.empty(0, dtype=np.int64)
        self._size = 0

    def start(self, state: RequestState) -> None:
        self._text = np.empty(2 * len(state.tokens) + 1024, dtype=np.int64)
        self._size = 0
        self._sync(state)

    def grow(self, state: RequestState, extra: Sequence[int], budget: int) -> DraftTree:
        self._sync(state)
        text = self._text[: self._size]
        tail = np.concatenate([text[-self._ngram :], np.asarray(extra, dtype=np.int64)])
        for n in range(min(self._ngram, len(tail)), 0, -1):
            end = _last_occurrence(text, self._size, tail[-n:], bool(len(extra)))
            copied = text[end : end + min(self._length, budget)] if end >= 0 else text[:0]
            if len(copied):
                cell = self._offset + n - 1
                scores = self._cells[cell] ** np.arange(1, len(copied) + 1)
                return DraftTree.of(
                    copied,
                    np.arange(-1, len(copied) - 1),
                    scores,
                    self.name,
                    np.full(len(copied), cell),
                )
        return EMPTY

    def _sync(self, state: RequestState) -> None:
        new = state.tokens[self._size :]
        if self._size + len(new) > len(self._text):
            self._text = np.concatenate([self._text[: self._size], np.empty(len(self._text) + len(new), np.int64)])
        self._text[self._size : self._size + len(new)] = new
        self._size += len(new)

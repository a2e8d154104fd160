"""A suffix array over the corpus' token ids: what followed these tokens elsewhere in the documents?

The datastore of REST (He et al. 2023, arXiv 2311.08252), memory-mapped and built with an index generation. Suffixes
are sorted by their first ``DEPTH`` tokens only (prefix doubling stops there): no longer match is ever looked up.
Documents are parted by a separator, so no match and no continuation runs from one into the next.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numba import njit

from retrieval.errors import InvalidRequest
from retrieval.files import Sink

DEPTH = 64
SEPARATOR = np.uint32(0xFFFFFFFF)
END = -1
"""fills a continuation that meets the end of its document"""


@dataclass(frozen=True)
class CorpusTokenizer:
    """The tokenizer of the model that is to be drafted for."""

    fingerprint: str
    encode: Callable[[str], Sequence[int]]
    """text → ids, without special tokens"""


class TokenStore:
    """Look-ups are read-only and thread-safe; ``restricted`` gives one that sees some documents alone."""

    def __init__(
        self,
        tokens: np.ndarray,
        suffixes: np.ndarray,
        offsets: np.ndarray,
        tokenizer: str,
        allowed: np.ndarray | None = None,
    ) -> None:
        self.tokens = tokens
        """uint32[n], documents parted by SEPARATOR"""
        self.offsets = offsets
        """int64[documents] where each begins"""
        self.tokenizer = tokenizer
        self._suffixes = suffixes
        self._allowed = allowed

    def __len__(self) -> int:
        return len(self.tokens)

    @classmethod
    def build(cls, documents: Iterable[Sequence[int]], tokenizer: str) -> TokenStore:
        """From the ids of each document. 10 million tokens take some seconds on one core."""
        parts: list[np.ndarray] = []
        lengths: list[int] = []
        for ids in documents:
            parts.append(np.asarray(ids, dtype=np.uint32))
            parts.append(np.array([SEPARATOR], dtype=np.uint32))
            lengths.append(len(ids) + 1)
        tokens = np.concatenate(parts) if parts else np.empty(0, dtype=np.uint32)
        offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])[:-1].astype(np.int64)
        return cls(tokens, suffix_array(tokens), offsets, tokenizer)

    def restricted(self, allowed: np.ndarray) -> TokenStore:
        """The same store, seeing the documents of bool[documents] alone."""
        return TokenStore(self.tokens, self._suffixes, self.offsets, self.tokenizer, allowed)

    def continuations(
        self, context: Sequence[int] | np.ndarray, max_match: int, min_match: int, max_occurrences: int, length: int
    ) -> tuple[int, np.ndarray]:
        """What follows the longest suffix of ``context`` that the corpus holds and goes on from.

        Args:
            context: token ids; only the last ``max_match`` are looked at.
            max_match, min_match: length of the suffix, in tokens; max_match at most DEPTH.
            max_occurrences: rows at most; of more occurrences, some spread evenly over all.
            length: tokens of each continuation.
        Returns:
            (match_length, int64[n, length]), END behind the end of a document; (0, empty) without a match.
        """
        if not 1 <= min_match <= max_match <= DEPTH or max_occurrences < 1 or length < 1:
            raise InvalidRequest(
                f"a look-up needs 1 <= min_match <= max_match <= {DEPTH}, max_occurrences >= 1 and length >= 1"
            )
        pattern = np.asarray(context[-max_match:], dtype=np.uint32)
        longest = self._longest(pattern, min_match)
        for match in range(longest, min_match - 1, -1):
            rows = self._rows(pattern[len(pattern) - match :], max_occurrences, length)
            if len(rows):
                return match, rows
        return 0, np.empty((0, length), dtype=np.int64)

    def _longest(self, pattern: np.ndarray, min_match: int) -> int:
        """The length of the longest suffix of the pattern that occurs; one that occurs makes all shorter ones occur."""
        low, high = min_match - 1, len(pattern)
        while low < high:
            middle = (low + high + 1) // 2
            first, last = _range(self.tokens, self._suffixes, pattern[len(pattern) - middle :])
            low, high = (middle, high) if last > first else (low, middle - 1)
        return low

    def _rows(self, pattern: np.ndarray, max_occurrences: int, length: int) -> np.ndarray:
        first, last = _range(self.tokens, self._suffixes, pattern)
        # more than are wanted, since some end with their document and some may not be seen
        wanted = max_occurrences if self._allowed is None else 8 * max_occurrences
        picked = np.unique(np.linspace(first, last - 1, min(2 * wanted, last - first)).astype(np.int64))
        starts = self._suffixes[picked].astype(np.int64) + len(pattern)
        if self._allowed is not None:
            starts = starts[self._allowed[np.searchsorted(self.offsets, starts - 1, side="right") - 1]]
        starts = starts[self.tokens[starts] != SEPARATOR][:max_occurrences]
        return _gather(self.tokens, starts, length)

    def arrays(self) -> dict[str, np.ndarray]:
        """name → array, each a file of a generation."""
        return {"tokens.npy": self.tokens, "suffixes.npy": self._suffixes, "offsets.npy": self.offsets}

    @classmethod
    def read(cls, folder: Path, tokenizer: str) -> TokenStore:
        """Memory-mapped from the files that ``arrays`` names."""
        tokens, suffixes, offsets = (
            np.load(folder / name, mmap_mode="r").view(np.ndarray)
            for name in ("tokens.npy", "suffixes.npy", "offsets.npy")
        )
        return cls(tokens, suffixes, offsets, tokenizer)


def save_array(sink: Sink, array: np.ndarray) -> None:
    """In numpy's format, which can be memory-mapped."""
    from io import BytesIO

    header = BytesIO()
    np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(array))
    sink(header.getvalue())
    sink(memoryview(np.ascontiguousarray(array)).cast("B"))  # type: ignore[arg-type]


def suffix_array(tokens: np.ndarray, depth: int = DEPTH) -> np.ndarray:
    """int32[n] starts of all suffixes of uint32[n], sorted by their first ``depth`` tokens (at least).

    Prefix doubling with counting sorts (Manber & Myers 1993): O(n log depth).
    """
    n = len(tokens)
    if n >= 1 << 31:
        raise InvalidRequest(f"a token store holds fewer than 2^31 tokens, not {n}")
    if n == 0:
        return np.empty(0, dtype=np.int32)
    real = tokens[tokens != SEPARATOR]
    top = int(real.max()) + 1 if len(real) else 0
    keys = np.where(tokens == SEPARATOR, np.uint32(top), tokens).astype(np.int32)
    suffixes, ranks, classes = _sort_first(keys, top + 1)
    length = 1
    while length < depth and classes < n:
        suffixes, ranks, classes = _double(suffixes, ranks, classes, length)
        length *= 2
    return suffixes


@njit(cache=True)
def _sort_first(keys: np.ndarray, values: int) -> Any:  # pragma: no cover - compiled
    """Counting sort by the first token. Returns (suffixes, rank of each, number of ranks)."""
    n = len(keys)
    counts = np.zeros(values + 1, np.int32)
    for key in keys:
        counts[key + 1] += 1
    for value in range(values):
        counts[value + 1] += counts[value]
    suffixes = np.empty(n, np.int32)
    for i in range(n):
        suffixes[counts[keys[i]]] = i
        counts[keys[i]] += 1
    ranks = np.empty(n, np.int32)
    rank = -1
    for j in range(n):
        if j == 0 or keys[suffixes[j]] != keys[suffixes[j - 1]]:
            rank += 1
        ranks[suffixes[j]] = rank
    return suffixes, ranks, rank + 1


@njit(cache=True)
def _double(suffixes: np.ndarray, ranks: np.ndarray, classes: int, length: int) -> Any:  # pragma: no cover - compiled
    """From an order by ``length`` tokens to one by twice as many."""
    n = len(suffixes)
    starts = np.zeros(classes + 1, np.int32)
    for i in range(n):
        starts[ranks[i] + 1] += 1
    for c in range(classes):
        starts[c + 1] += starts[c]
    # by the second half: suffixes too short to have one first, the others in the present order
    sorted_ = np.empty(n, np.int32)
    for i in range(n - length, n):
        if i >= 0:
            sorted_[starts[ranks[i]]] = i
            starts[ranks[i]] += 1
    for j in range(n):
        i = suffixes[j] - length
        if i >= 0:
            sorted_[starts[ranks[i]]] = i
            starts[ranks[i]] += 1
    renewed = np.empty(n, np.int32)
    rank = -1
    for j in range(n):
        i = sorted_[j]
        fresh = j == 0
        if not fresh:
            before = sorted_[j - 1]
            second = ranks[i + length] if i + length < n else -1
            second_before = ranks[before + length] if before + length < n else -1
            fresh = ranks[i] != ranks[before] or second != second_before
        rank += fresh
        renewed[i] = rank
    return sorted_, renewed, rank + 1


@njit(cache=True)
def _compare(tokens: np.ndarray, start: int, pattern: np.ndarray) -> int:  # pragma: no cover - compiled
    """Sign of suffix − pattern over the pattern's length."""
    for j in range(len(pattern)):
        if start + j >= len(tokens):
            return -1
        if tokens[start + j] != pattern[j]:
            return -1 if tokens[start + j] < pattern[j] else 1
    return 0


@njit(cache=True)
def _range(tokens: np.ndarray, suffixes: np.ndarray, pattern: np.ndarray) -> Any:  # pragma: no cover - compiled
    """[first, last) of the suffixes that begin with the pattern."""
    low, high = 0, len(suffixes)
    while low < high:
        middle = (low + high) // 2
        if _compare(tokens, suffixes[middle], pattern) < 0:
            low = middle + 1
        else:
            high = middle
    first, high = low, len(suffixes)
    while low < high:
        middle = (low + high) // 2
        if _compare(tokens, suffixes[middle], pattern) <= 0:
            low = middle + 1
        else:
            high = middle
    return first, low


@njit(cache=True)
def _gather(tokens: np.ndarray, starts: np.ndarray, length: int) -> np.ndarray:  # pragma: no cover - compiled
    rows = np.full((len(starts), length), -1, np.int64)
    for row in range(len(starts)):
        for j in range(length):
            at = starts[row] + j
            if at >= len(tokens) or tokens[at] == 0xFFFFFFFF:
                break
            rows[row, j] = tokens[at]
    return rows

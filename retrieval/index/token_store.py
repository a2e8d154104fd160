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

from retrieval.common.files import Sink
from retrieval.errors import InvalidRequest

DEPTH = 64
SEPARATOR = np.uint32(0xFFFFFFFF)
_PACKED = 3
_BITS = 21
_EVERY = np.empty(0, dtype=bool)  # stands for: all documents may be seen
END = -1
"""fills a continuation that meets the end of its document"""


@dataclass(frozen=True)
class CorpusTokenizer:
    """The tokenizer of the model that is to be drafted for.

    Attributes:
        encode: text → ids, without special tokens.
    """

    fingerprint: str
    encode: Callable[[str], Sequence[int]]


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
        """From the ids of each document. 10 million tokens take about 40 s on one core."""
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
        allowed = _EVERY if self._allowed is None else self._allowed
        return _continuations(
            self.tokens, self._suffixes, self.offsets, allowed, pattern, min_match, max_occurrences, length
        )

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

    First by three tokens packed in one integer; then prefix doubling, which sorts again only the suffixes that are
    still tied (Larsson & Sadakane 1999, "Faster suffix sorting"). A suffix' rank is where its group of ties begins,
    so ranks of groups that were not touched stay right.
    """
    n = len(tokens)
    if n >= 1 << 31:
        raise InvalidRequest(f"a token store holds fewer than 2^31 tokens, not {n}")
    keys = _packed(tokens)
    order = np.argsort(keys)
    fresh = _changes(keys[order])
    del keys
    ranks = np.empty(n + 1, dtype=np.int64)
    ranks[n] = -1  # the empty suffix sorts first
    ranks[order] = np.maximum.accumulate(np.where(fresh, np.arange(n), 0))
    length = _PACKED
    while length < depth:
        tied = np.flatnonzero(~(fresh & np.append(fresh[1:], True)))
        if len(tied) == 0:
            break
        suffixes = order[tied]
        keys = (ranks[suffixes] << 32) | (ranks[np.minimum(suffixes + length, n)] + 1)
        again = np.argsort(keys)
        order[tied] = suffixes[again]
        fresh[tied] = _changes(keys[again])
        # a group of ties is contiguous, so its first member is the last one before it that is fresh
        ranks[order[tied]] = np.maximum.accumulate(np.where(fresh[tied], tied, 0))
        length *= 2
    return order.astype(np.int32)


def _packed(tokens: np.ndarray) -> np.ndarray:
    """int64[n]: each token and the two after it, in the order of the tokens, the separator last."""
    largest = (1 << _BITS) - 1
    if np.any((tokens >= largest - 1) & (tokens != SEPARATOR)):
        raise InvalidRequest(f"token ids must be below {largest - 1}")
    one = np.where(tokens == SEPARATOR, largest, tokens.astype(np.int64) + 1)
    keys = one << (2 * _BITS)
    keys[:-1] |= one[1:] << _BITS
    keys[:-2] |= one[2:]
    return keys


def _changes(keys: np.ndarray) -> np.ndarray:
    """bool[n]: where a sorted array begins a new value."""
    return np.concatenate([np.ones(min(1, len(keys)), dtype=bool), keys[1:] != keys[:-1]])


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
def _continuations(
    tokens: np.ndarray,
    suffixes: np.ndarray,
    offsets: np.ndarray,
    allowed: np.ndarray,
    pattern: np.ndarray,
    least: int,
    most: int,
    length: int,
) -> Any:  # pragma: no cover - compiled
    # a suffix of the pattern that occurs makes all shorter ones occur
    longest, high = least - 1, len(pattern)
    while longest < high:
        middle = (longest + high + 1) // 2
        first, last = _range(tokens, suffixes, pattern[len(pattern) - middle :])
        longest, high = (middle, high) if last > first else (longest, middle - 1)
    starts = np.empty(most, np.int64)
    for match in range(longest, least - 1, -1):
        first, last = _range(tokens, suffixes, pattern[len(pattern) - match :])
        # more than are wanted, since some end with their document and some may not be seen
        tries = min((16 if len(allowed) else 2) * most, last - first)
        found = 0
        for i in range(tries):
            start = np.int64(suffixes[first + (last - first - 1) * i // max(tries - 1, 1)]) + match
            if tokens[start] == SEPARATOR:
                continue
            if len(allowed) and not allowed[np.searchsorted(offsets, start - 1, side="right") - 1]:
                continue
            starts[found] = start
            found += 1
            if found == most:
                break
        if found:
            return match, _gather(tokens, starts[:found], length)
    return 0, np.empty((0, length), np.int64)


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

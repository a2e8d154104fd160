"""Where the tokens of a text begin, and how far a model reads it; in whatever process has the tokenizer."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from retrieval.analysis.words import is_unspaced

READ_AT_LEAST = 0.25
"""share of a text that a model must read to give it a vector"""
WORD_LIKE = 4
"""letters in a piece from which it counts as a word"""
UNSPACED_WEIGHT = 3
"""letters that a character of a script without spaces is worth: its words have one or two"""

SLICE_CHARS = 1 << 16
"""A text is tokenised so much at a time: a token takes some hundred bytes while it is looked at."""
GAP_CHARS = 1 << 10
"""how far back from a slice's end white space is looked for"""
SAMPLED = 8
"""slices of a text that tell how far it is read"""


@dataclass(frozen=True, eq=False)
class Tokens:
    """A tokenizer of the library ``tokenizers``, and the token of what it does not know."""

    tokenizer: Any = field(repr=False)
    unknown: int | None

    def saved(self) -> str:
        """For another process; see ``restored``."""
        return json.dumps({"tokenizer": self.tokenizer.to_str(), "unknown": self.unknown})

    @classmethod
    def restored(cls, saved: str) -> Tokens:
        from tokenizers import Tokenizer

        data = json.loads(saved)
        return cls(Tokenizer.from_str(data["tokenizer"]), data["unknown"])

    def starts(self, text: str) -> np.ndarray:
        """int64[n] offsets of the first character of each token. Of a text that gets no vector, words are what counts,
        and not its letters."""
        slices = list(_slices(text))
        sampled = set(np.linspace(0, len(slices) - 1, SAMPLED, dtype=int).tolist()) if slices else set()
        found = []
        whole = read = 0.0
        for number, (start, end) in enumerate(slices):
            part = text[start:end]
            (encoding,) = self.tokenizer.encode_batch([part], add_special_tokens=False)  # other threads go on meanwhile
            offsets = encoding.offsets
            found.append(start + np.fromiter((first for first, _ in offsets), dtype=np.int64, count=len(offsets)))
            if number in sampled:
                letters, known = self._letters(part, encoding, 0)
                whole, read = whole + letters, read + known
        starts = np.concatenate(found) if found else np.empty(0, dtype=np.int64)
        return starts if read and read / whole >= READ_AT_LEAST else _word_like(text, starts)

    def read(self, text: str, encoding: Any, start: int) -> float:
        """Share of the characters from ``start`` on that stand in words that the model reads, 0 for none.

        A word of one piece counts whole; of several by their mean length; with an unknown piece not at all.
        """
        whole, read = self._letters(text, encoding, start)
        return read / whole if whole else 0.0

    def _letters(self, text: str, encoding: Any, start: int) -> tuple[float, float]:
        """Letters of words, and those of them that are read."""
        words: dict[int, list[int]] = {}  # start, end, pieces, unknown pieces
        for word, (begin, end), token in zip(encoding.word_ids, encoding.offsets, encoding.ids, strict=True):
            if word is not None and end > start:
                found = words.setdefault(word, [max(begin, start), end, 0, 0])
                found[1] = end
                found[2] += 1
                found[3] += token == self.unknown
        whole = read = 0.0
        for begin, end, pieces, unknown in words.values():
            length = end - begin
            whole += length
            if not unknown:
                read += length * (
                    1.0 if pieces == 1 else _likeness_to_words(text[begin + length // 2], length / pieces)
                )
        return whole, read


def _slices(text: str) -> Iterator[tuple[int, int]]:
    """Spans that end at white space where there is some, so that no word is cut."""
    start = 0
    while start < len(text):
        end = min(start + SLICE_CHARS, len(text))
        if end < len(text):
            gap = next((at for at in range(end, max(start, end - GAP_CHARS), -1) if text[at].isspace()), end)
            end = gap
        yield start, end
        start = end


def _likeness_to_words(sample: str, letters: float) -> float:
    """Of pieces of so many letters in the mean; ``sample`` is one of the letters."""
    worth = UNSPACED_WEIGHT if is_unspaced(sample) else 1
    return min(1.0, max(0.0, (worth * letters - 1) / (WORD_LIKE - 1)))


def _word_like(text: str, starts: np.ndarray) -> np.ndarray:
    """Those that are ``WORD_LIKE`` letters apart, and every one of a script without spaces."""
    kept: list[int] = []
    for start in starts.tolist():
        if not kept or start - kept[-1] >= WORD_LIKE or is_unspaced(text[start]):
            kept.append(start)
    return np.array(kept, dtype=np.int64)

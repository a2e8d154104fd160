"""Sentences of a text as the reader is given them.

The reader quotes whole sentences, so this is the unit of its citations: those of `retrieval.parsing.sentences`, and
rows of tables. What is too long is cut at a clause.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from retrieval.parsing.sentences import units

LONGEST = 320
"""Characters of the longest sentence (about 80 tokens) that the reader can copy by itself: it was trained on no longer
ones."""
LONGEST_QUOTED = 1000
"""Characters of the longest sentence that is quoted where the words are not left to the model."""

_CLAUSE = re.compile(r"[;:,\u2014)]\s+")


@dataclass(frozen=True, slots=True)
class Sentence:
    """One sentence: the slice ``text[start:end]`` and the same words on one line.

    Attributes:
        words: the slice with every run of white space made one space.
        offsets: for each character of `words`, its offset from `start` in the text.
    """

    start: int
    end: int
    words: str
    offsets: tuple[int, ...]

    def span(self, begin: int, finish: int) -> tuple[int, int]:
        """Offsets into the text of the characters ``words[begin:finish]``, which must not be empty."""
        return self.start + self.offsets[begin], self.start + self.offsets[finish - 1] + 1


def split(text: str, longest: int = LONGEST) -> list[Sentence]:
    """The sentences of `text` in order, none of more characters than `longest`; what holds no letter or digit is left
    out."""
    found = []
    for start, end in units(text):
        for begin, finish in _cut(text, start, end, longest):
            sentence = _sentence(text, begin, finish)
            if any(c.isalnum() for c in sentence.words):
                found.append(sentence)
    return found


def _cut(text: str, start: int, end: int, longest: int) -> list[tuple[int, int]]:
    """Pieces of at most `longest` characters, cut behind a clause where there is one, else at a space."""
    pieces = []
    while end - start > longest:
        clauses = [m.end() for m in _CLAUSE.finditer(text, start + longest // 3, start + longest)]
        space = text.rfind(" ", start + longest // 2, start + longest)
        at = clauses[-1] if clauses else space + 1 if space > 0 else start + longest
        pieces.append((start, at))
        start = at
    pieces.append((start, end))
    return pieces


def _sentence(text: str, start: int, end: int) -> Sentence:
    raw = text[start:end]
    lead = len(raw) - len(raw.lstrip())
    raw = raw.strip()
    start += lead
    words, offsets, gap = [], [], False
    for at, character in enumerate(raw):
        if character.isspace():
            gap = True
            continue
        if gap:
            words.append(" ")
            offsets.append(at - 1)
            gap = False
        words.append(character)
        offsets.append(at)
    return Sentence(start, start + len(raw), "".join(words), tuple(offsets))

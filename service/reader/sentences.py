"""Sentences of a text, as exact character spans.

The reader quotes whole sentences, so this is the unit of its citations. The rules are plain: a sentence ends
at ``.``, ``!`` or ``?`` (closing quotes included) before white space and something that can open a sentence,
at a blank line, and before a list item; what is longer than `LONGEST` characters is cut at a clause.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

LONGEST = 320
"""Characters of the longest sentence (about 80 tokens); the reader was trained on no longer ones."""

_BREAK = re.compile(
    r"(?<=[.!?])(?:[\"'\u201d\u2019)\]]{0,3})\s+(?=[\"'\u201c\u2018(\[]{0,2}[A-Z0-9])"
    r"|\s*\n\s*\n\s*"
    r"|\s*\n(?=\s*(?:[-*\u2022]\s|\d{1,3}[.)]\s))"
)
_ABBREVIATION = re.compile(
    r"(?:\b(?:Mr|Mrs|Ms|Dr|St|Prof|Sir|Jr|Sr|vs|etc|cf|Fig|No|Vol|pp|ed|e\.g|i\.e)|(?:^|[\s(.])[A-Z])\.$"
)
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


def split(text: str) -> list[Sentence]:
    """The sentences of `text` in order; what holds no letter or digit is left out."""
    sentences = []
    for start, end in _spans(text):
        for begin, finish in _cut(text, start, end):
            sentence = _sentence(text, begin, finish)
            if any(c.isalnum() for c in sentence.words):
                sentences.append(sentence)
    return sentences


def _spans(text: str) -> list[tuple[int, int]]:
    spans, start = [], 0
    for match in _BREAK.finditer(text):
        closing = len(match.group()) - len(match.group().lstrip("\"'\u201d\u2019)]"))
        end = match.start() + closing
        blank = match.group().count("\n") > 1
        if not blank and _ABBREVIATION.search(text, max(start, end - 8), end):
            continue
        spans.append((start, end))
        start = match.end()
    spans.append((start, len(text)))
    return spans


def _cut(text: str, start: int, end: int) -> list[tuple[int, int]]:
    """Pieces of at most `LONGEST` characters, cut behind a clause where there is one, else at a space."""
    pieces = []
    while end - start > LONGEST:
        clauses = [m.end() for m in _CLAUSE.finditer(text, start + LONGEST // 3, start + LONGEST)]
        space = text.rfind(" ", start + LONGEST // 2, start + LONGEST)
        at = clauses[-1] if clauses else space + 1 if space > 0 else start + LONGEST
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

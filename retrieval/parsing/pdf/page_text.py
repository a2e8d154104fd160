"""Blocks of a page written as its text, with the way back from each character to where it is printed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from retrieval.parsing.pdf.segments import BREAK, CAPTION, Block, Segment, ends_sentence, said

_HYPHEN = re.compile(r"[^\W\d_][-\u2010\xad]")
_HYPHENS = "-\u2010\xad"
_LOWER = re.compile(r"[^\W\d_A-Z]")


@dataclass
class PageText:
    """A page's text, with ``BREAK`` where a line ends in a hyphen.

    Attributes:
        sources: where the text comes from, piece by piece: (start, end) in what PDFium gives, or (−1 − the number of a
            value, characters of it).
        tables: (header, spans of the rows).
        headings: spans.
        lines: (start, end) of each line.
        tops: of each line, how high it stands.
        values: rectangles of the page's values: left, bottom, right, top on the page.
    """

    text: str
    sources: list[tuple[int, int]]
    tables: list[tuple[str, list[tuple[int, int]]]]
    headings: list[tuple[int, int]]
    lines: list[tuple[int, int]]
    tops: list[float]
    values: list[tuple[float, float, float, float]] = field(default_factory=list)

    def index(self, raw_index: np.ndarray) -> np.ndarray:
        """int64[len(text)] of each character in PDFium's numbering; below 0, −1 − the number of its form value."""
        parts = [np.full(end, start) if start < 0 else raw_index[start:end] for start, end in self.sources]
        return np.concatenate([np.zeros(0, dtype=np.int64), *parts])


def write(blocks: list[Block]) -> PageText:
    """The blocks' text: lines as they are printed, cells parted by a tab, blocks by a blank line."""
    writer = _Writer()
    for number, block in enumerate(placed := _notes_aside(blocks)):
        writer.block(block, placed[number - 1] if number else None)
    return writer.done()


def _notes_aside(blocks: list[Block]) -> list[Block]:
    """Footnotes go before the sentence that the page's end breaks off, else where the page ends."""
    notes = [block for block in blocks if block.kind == "note"]
    if not notes:
        return blocks
    body = [block for block in blocks if block.kind != "note"]
    feet: list[Block] = []
    if body and blocks[-1].kind != "note" and len(body[-1].rows) <= 2 and len(body) > 1:
        feet = [body.pop()]  # a page number below the notes
    if body and body[-1].kind == "prose" and not ends_sentence(body[-1].rows[-1]):
        rows = body[-1].rows
        at = next((i for i in range(len(rows) - 1, 0, -1) if ends_sentence(rows[i - 1])), 0)
        return [*body[:-1], *([Block("prose", rows[:at])] if at else []), *notes, Block("prose", rows[at:]), *feet]
    return [*body, *notes, *feet]


class _Writer:
    def __init__(self) -> None:
        self._parts: list[str] = []
        self._at = 0
        self._page = PageText("", [], [], [], [], [])

    def block(self, block: Block, before: Block | None) -> None:
        if before is not None:
            self._add(_between(before, block))
        spans = []
        for number, row in enumerate(block.rows):
            if number and not self._broken():
                self._add("\n")
            spans.append(self._row(row, block, number))
        if block.kind == "heading":
            self._page.headings.append((spans[0][0], spans[-1][1]))
        elif block.kind == "table":
            caption = said(before.rows[-1]) if before is not None and CAPTION.match(said(before.rows[-1])) else ""
            names = "\t".join(one.text for one in block.rows[0])
            self._page.tables.append(("\n".join(filter(None, (caption, names))), spans[1:]))

    def _row(self, row: Sequence[Segment], block: Block, number: int) -> tuple[int, int]:
        start = self._at
        for place, one in enumerate(row):
            if place:
                self._add("\t" if block.kind == "table" else " ")
            if one.value < 0 and not one.hyphen and one.text[-1] not in _HYPHENS:
                self._add(one.text, (one.start, one.end))
                continue
            written = not one.hyphen and place == len(row) - 1 and self._breaks(one, block, number)
            length = len(one.text) - written
            text = one.text[:length] if written else one.text
            self._add(text, (one.start, one.start + length) if one.value < 0 else (-1 - one.value, length))
            if written or one.hyphen:
                at = one.start + length
                self._add(BREAK, (at, at + 1) if one.value < 0 else (-1 - one.value, 1))
        self._page.lines.append((start, self._at))
        self._page.tops.append(row[0].box.top)
        return start, self._at

    def _breaks(self, one: Segment, block: Block, number: int) -> bool:
        """Whether the segment, the last of its row, ends in the hyphen of a word that goes on below."""
        if one.typed or not _HYPHEN.fullmatch(one.text[-2:]) or number + 1 >= len(block.rows):
            return False
        return bool(_LOWER.match(block.rows[number + 1][0].text))

    def _broken(self) -> bool:
        return bool(self._parts) and self._parts[-1] == BREAK

    def _add(self, text: str, source: tuple[int, int] | None = None) -> None:
        self._parts.append(text)
        self._page.sources.append(source or (-1, len(text)))  # white space is printed nowhere
        self._at += len(text)

    def done(self) -> PageText:
        self._page.text = "".join(self._parts)
        return self._page


def _between(before: Block, block: Block) -> str:
    """Between two blocks. A caption stands next to its table; a sentence that goes on is not parted."""
    if block.kind == "table" and CAPTION.match(said(before.rows[-1])):
        return "\n"
    if before.kind == "prose" == block.kind and not ends_sentence(before.rows[-1]):
        return "\n"
    return "\n\n"

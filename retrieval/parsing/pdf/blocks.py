"""Rows in reading order to blocks: prose by paragraphs, headings, tables, footnotes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise, takewhile

from retrieval.parsing.pdf.segments import CAPTION, Block, Rows, Segment, ends_sentence, median, said
from retrieval.parsing.pdf.tables import table_at

_MARKER = re.compile(r"(?:\d{1,3}|[*†‡§¶]+|\[\d{1,3}\])[ .)]?\s*[^\W\d_]")
_TALL = 1.2
"""times the usual height that a heading has at least"""


def blocks_of(rows: Rows, segments: Sequence[Segment]) -> list[Block]:
    heights = [one.height for one in segments]
    usual, pitch = median(heights), _pitch(rows)
    headings = max(heights, default=0.0) >= _TALL * usual
    blocks: list[Block] = []
    at = 0
    while at < len(rows):
        end = table_at(rows, at) if len(rows[at]) > 1 else at
        if end > at:
            blocks.append(Block("table", rows[at:end]))
            at = end
            continue
        kind = "heading" if headings and _is_heading(rows, at, usual) else "prose"
        if not blocks or blocks[-1].kind != kind or (kind == "prose" and _paragraph_ends(rows, at, pitch)):
            blocks.append(Block(kind))
        blocks[-1].rows.append(rows[at])
        at += 1
    return _with_notes(blocks, usual)


def _pitch(rows: Rows) -> float:
    steps = [one[0].box.top - two[0].box.top for one, two in pairwise(rows)]
    return median([step for step in steps if step > 0])


def _paragraph_ends(rows: Rows, at: int, pitch: float) -> bool:
    """Whether there is white space before this line, and a sentence may end there."""
    step = rows[at - 1][0].box.top - rows[at][0].box.top
    return step > 1.4 * pitch > 0 and (ends_sentence(rows[at - 1]) or bool(CAPTION.match(said(rows[at]))))


def _is_heading(rows: Rows, at: int, usual: float) -> bool:
    row = rows[at]
    if not _is_tall(row, usual):
        return False
    text = said(row)
    if len(text) > 120 or text[-1:] in ".,;" or not text[:1].isalnum():
        return False
    if text[0].islower() or not any(ch.isalpha() for ch in text):
        return False
    before = rows[at - 1] if at else None
    return before is None or _is_tall(before, usual) or ends_sentence(before)


def _is_tall(row: Sequence[Segment], usual: float) -> bool:
    """Recognised lines are as high as their letters happen to be."""
    return row[0].height >= (1.4 if row[0].recognised else _TALL) * usual


def _is_small(row: Sequence[Segment], usual: float) -> bool:
    return row[0].height < (0.75 if row[0].recognised else 0.92) * usual


def _with_notes(blocks: list[Block], usual: float) -> list[Block]:
    """Footnotes in a block of their own: small lines at the foot of a column, the first with its mark."""
    result: list[Block] = []
    for block in blocks:
        start = _note_starts(block.rows, usual) if block.kind == "prose" else len(block.rows)
        if start:
            result.append(Block(block.kind, block.rows[:start]))
        if start < len(block.rows):
            small = list(takewhile(lambda row: _is_small(row, usual), block.rows[start:]))
            rest = block.rows[start + len(small) :]
            result.append(Block("note", small))
            if rest:
                result.append(Block("prose", rest))
    return result


def _note_starts(rows: Rows, usual: float) -> int:
    for at, row in enumerate(rows):
        if _is_small(row, usual) and _MARKER.match(said(row)):
            return at
    return len(rows)

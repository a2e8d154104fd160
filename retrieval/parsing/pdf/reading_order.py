"""The lines of a page of a PDF in the order in which people read them.

PDFium gives characters in the order in which the file writes them, cut into lines, and says where each stands. A line
that crosses the gutter between columns is cut there; columns are read one after the other, rows of a table as rows.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pypdfium2 as pdfium

from retrieval.parsing.pdf.blocks import blocks_of
from retrieval.parsing.pdf.gaps import MOST_CHARS, around_wide_lines, cut_at_gaps, has_gutter
from retrieval.parsing.pdf.ruler import Ruler
from retrieval.parsing.pdf.segments import BREAK, Block, Rows, Segment
from retrieval.parsing.pdf.tables import is_table

_LINE = re.compile(rf"[^\r\n{BREAK}]+{BREAK}?")
_MOST_LINES = 1_000
"""of a page that is looked at for columns: more is no page that people read"""


def read_blocks(
    text_page: pdfium.PdfTextPage, raw: str, index: np.ndarray, values: Sequence[Segment], turned: int
) -> list[Block]:
    """Blocks of a page in reading order.

    Args:
        turned: degrees by which the page is turned clockwise when it is displayed.
        raw: the page's text as PDFium gives it.
        index: int64[len(raw)] of each character in PDFium's numbering.
        values: what is typed into the page's form, to be read among the printed lines.
    """
    lines = [found.span() for found in _LINE.finditer(raw)]
    lines = [(start, end) for start, end in lines if not raw[start:end].isspace()]
    ruler = Ruler(text_page, raw, index, turned)
    segments = ruler.lines(lines)
    if len(lines) > _MOST_LINES or not _upright(segments):
        return blocks_of([[segment] for segment in segments], segments)
    stamps = [Block("prose", [[one]]) for one in segments if one.sideways]  # in the margin
    if stamps:
        segments = [one for one in segments if not one.sideways]
    columns = has_gutter(ruler, segments)
    measured = [one for one in segments if len(one.text) <= MOST_CHARS] if columns else around_wide_lines(segments)
    rows = cut_at_gaps(ruler, segments, measured)
    if values or columns or not _descending(segments):
        segments = [segment for row in rows for segment in row]
        rows = _ordered([*segments, *values])
    return [*blocks_of(rows, segments), *stamps]


def arranged(segments: Sequence[Segment]) -> list[Block]:
    """Blocks of lines whose places are known, in reading order."""
    return blocks_of(_ordered(list(segments)), segments)


def _upright(segments: Sequence[Segment]) -> bool:
    """Whether lines run from left to right: text that is turned keeps the order of its file."""
    long = [one for one in segments if one.end - one.start > 4]
    return sum(one.box.right - one.box.left > one.height for one in long) * 2 >= len(long)


def _descending(segments: Sequence[Segment]) -> bool:
    boxes = [one.box for one in segments]
    return all(two.bottom < one.bottom + 1.5 * (one.top - one.bottom) for one, two in pairwise(boxes))


def _ordered(segments: list[Segment]) -> Rows:
    """Rows in reading order; several segments in a row are the cells of a table or parts of one line."""
    gutter = None if is_table(rows_of(segments)) else _gutter(segments)
    if gutter is None:
        return rows_of(segments)
    result: Rows = []
    left: list[Segment] = []
    right: list[Segment] = []
    for row in [*rows_of(segments), []]:
        across = not row or any(one.box.left < gutter - 1 and one.box.right > gutter + 1 for one in row)
        if across:
            result += _ordered(left) if left else []
            result += _ordered(right) if right else []
            left, right = [], []
            result += [row] if row else []
        else:
            left += [one for one in row if one.box.right <= gutter + 1]
            right += [one for one in row if one.box.right > gutter + 1]
    return result


def rows_of(segments: Sequence[Segment]) -> Rows:
    """Segments that share a line, from left to right, from the top down."""
    rows: Rows = []
    for one in sorted(segments, key=lambda one: -(one.box.top + one.box.bottom)):
        if rows and any(_level(one, other) for other in rows[-1]):
            rows[-1].append(one)
        else:
            rows.append([one])
    return [sorted(row, key=lambda one: one.box.left) for row in rows]


def _level(one: Segment, two: Segment) -> bool:
    """Whether they stand on one line; the field of a form may be much higher than its label."""
    slack = max(one.height, two.height) if one.typed or two.typed else 0.8 * min(one.height, two.height)
    return abs(one.box.top + one.box.bottom - two.box.top - two.box.bottom) < slack


def _gutter(segments: Sequence[Segment]) -> float | None:
    """The x of a gap from top to bottom between two columns of prose that few lines cross; None where there is none."""
    printed = [one for one in segments if not one.typed]
    if len(printed) < 4:
        return None
    leftmost, rightmost = min(one.box.left for one in printed), max(one.box.right for one in printed)
    width = rightmost - leftmost
    best: tuple[float, float] | None = None
    for x in sorted({one.box.left - 0.5 for one in printed}):
        if not leftmost + 0.15 * width < x < rightmost - 0.15 * width:
            continue
        left = [one for one in printed if one.box.right <= x]
        right = [one for one in printed if one.box.left >= x]
        crossing = len(printed) - len(left) - len(right)
        if not (_prose(left, x - leftmost) and _prose(right, rightmost - x)) or crossing > 0.5 * len(printed):
            continue
        score = crossing - 0.01 * min(len(left), len(right))
        if best is None or score < best[0]:
            best = (score, x)
    return best[1] if best else None


def _prose(side: Sequence[Segment], width: float) -> bool:
    """Whether this is a column of running text: several lines of words that fill it."""
    if len(side) < 2:
        return False
    full = sum(one.box.right - one.box.left > 0.55 * width for one in side)
    words = sorted(one.words for one in side)[len(side) // 2]
    return words >= 3 and (full >= 2 or full * 2 >= len(side))

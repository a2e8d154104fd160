"""The lines of a page of a PDF in the order in which people read them: columns, tables, headings, footnotes.

PDFium gives characters in the order in which the file writes them, cut into lines, and says where each stands. A line
that crosses the gutter between columns is cut there; columns are read one after the other, rows of a table as rows.
Geometry is asked for sparingly (the ends of every line, the words of some), for it costs more than the text.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import combinations, pairwise, takewhile
from typing import NamedTuple

import numpy as np
import pypdfium2 as pdfium

BREAK = "\ufffe"
"""a hyphen at the end of a line, as PDFium marks it; whether it belongs to the word is seen later"""

_LINE = re.compile(rf"[^\r\n{BREAK}]+{BREAK}?")
_WORD = re.compile(r"\S+")
_SPACE = re.compile(r"(?<=\S)\s+(?=\S)")
_HYPHEN = re.compile(r"[^\W\d_][-\u2010\xad]")
_HYPHENS = "-\u2010\xad"
_LOWER = re.compile(r"[^\W\d_A-Z]")
_DIGIT = re.compile(r"\d")
_MARKER = re.compile(r"(?:\d{1,3}|[*†‡§¶]+|\[\d{1,3}\])[ .)]?\s*[^\W\d_]")
_CAPTION = re.compile(r"(?:Tab(?:le|\.|elle|leau|la)|Fig(?:ure|\.|ura)|Abb(?:ildung|\.))\s*[\dIVX]+", re.I)
_SOLID = re.compile(r"[^\W\d_]{3}|\d{2}")
_ENDED = re.compile(r"""[.!?:;。！？]["'”’»)\]\d]*$""")

_PROBED = 5
"""lines of a page whose words are measured to see whether the page has columns"""
_LETTER = 0.5
"""width of a letter, in heights of the line, at most: the usual one of a page may be that of its table's rows"""
_SPARSE = 1.5
"""times the usual width a character that a line must have to be taken for several cells"""
_BUFFER = (pdfium.raw.FS_RECTF * 512)()
_SLOTS = [ctypes.byref(one) for one in _BUFFER]
_SIDES = np.frombuffer(_BUFFER, dtype=np.float32).reshape(-1, 4)
"""the same: left, top, right, bottom"""
_MOST_LINES = 1_000
_MOST_CHARS = 1_000
"""of a page, and of a line, that are looked at for columns: more is no page that people read"""
_GAP = 0.8
"""width of a gutter, in heights of the line, where several lines agree on it"""
_TALL = 1.2
"""times the usual height that a heading has at least"""
_WIDE_GAP = 2.0
"""width of a gap that parts the cells of a row by itself"""


class Box(NamedTuple):
    """In points of the page as it is displayed; where its origin lies is left open."""

    left: float
    bottom: float
    right: float
    top: float


@dataclass(slots=True)
class Segment:
    """Characters ``start:end`` of PDFium's text that stand on one line and in one column."""

    start: int
    end: int
    box: Box
    text: str
    hyphen: bool = False
    value: int = -1
    """which of the page's values it is (what is typed into its form, or recognised in its picture); -1: printed text"""
    recognised: bool = False
    sideways: bool = False
    """its letters lie on their sides"""
    height: float = field(init=False)

    def __post_init__(self) -> None:
        self.height = self.box.top - self.box.bottom

    @property
    def typed(self) -> bool:
        """Whether somebody filled it into a field, which may be much higher than a line."""
        return self.value >= 0 and not self.recognised

    @property
    def words(self) -> int:
        return len(self.text.split())


Rows = list[list[Segment]]
"""segments of one line each; several are the cells of a table, or parts of the line"""


@dataclass
class Block:
    """Lines that belong together, each of one segment, or of several where it is the row of a table."""

    kind: str
    """``prose``, ``heading``, ``table`` or ``note``"""
    rows: Rows = field(default_factory=list)


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
    ruler = _Ruler(text_page, raw, index, turned)
    segments = ruler.lines(lines)
    if len(lines) > _MOST_LINES or not _upright(segments):
        return _blocks([[segment] for segment in segments], segments)
    stamps = [Block("prose", [[one]]) for one in segments if one.sideways]  # in the margin
    if stamps:
        segments = [one for one in segments if not one.sideways]
    columns = _has_gutter(ruler, segments)
    measured = [one for one in segments if len(one.text) <= _MOST_CHARS] if columns else _around_wide_lines(segments)
    rows = _cut_at_gaps(ruler, segments, measured)
    if values or columns or not _descending(segments):
        segments = [segment for row in rows for segment in row]
        rows = _ordered([*segments, *values])
    return [*_blocks(rows, segments), *stamps]


def arranged(segments: Sequence[Segment]) -> list[Block]:
    """Blocks of lines whose places are known, in reading order."""
    return _blocks(_ordered(list(segments)), segments)


class _Ruler:
    """Measures characters of one page."""

    def __init__(self, text_page: pdfium.PdfTextPage, raw: str, index: np.ndarray, turned: int) -> None:
        self.raw = raw
        self._page = text_page
        self._turned = turned
        self._index = index

    def lines(self, spans: Sequence[tuple[int, int]]) -> list[Segment]:
        marked = [self.raw[end - 1] == BREAK for _, end in spans]
        words = [(start, end - hyphen) for (start, end), hyphen in zip(spans, marked, strict=True)]
        ends = [_stripped(self.raw, start, end) for start, end in words]
        boxes = self.boxes([character for start, end in ends for character in (start, end - 1)])
        lying = boxes[:, 2] - boxes[:, 0] > boxes[:, 3] - boxes[:, 1]
        sideways = (lying[::2] & lying[1::2]).tolist()
        return [
            Segment(start, end, box, self.raw[start:end], hyphen, sideways=aside and end - start > 4)
            for (start, end), box, hyphen, aside in zip(ends, _joined(boxes), marked, sideways, strict=True)
        ]

    def words(self, segments: Iterable[Segment]) -> list[list[Segment]]:
        """Of each segment, its words."""
        found = [[word.span() for word in _WORD.finditer(self.raw, one.start, one.end)] for one in segments]
        ends = [character for spans in found for start, end in spans for character in (start, end - 1)]
        boxes = iter(_joined(self.boxes(ends)))
        return [[Segment(*span, next(boxes), self.raw[slice(*span)]) for span in spans] for spans in found]

    def boxes(self, characters: Sequence[int]) -> np.ndarray:
        """float64[len(characters), 4]: a `Box` of each."""
        measure, page = pdfium.raw.FPDFText_GetLooseCharBox, self._page.raw
        numbers = self._index[np.array(characters, dtype=np.int64)].tolist()
        sides = np.empty((len(numbers), 4))
        for at in range(0, len(numbers), len(_SLOTS)):
            part = numbers[at : at + len(_SLOTS)]
            for number, slot in zip(part, _SLOTS, strict=False):
                measure(page, number, slot)
            sides[at : at + len(part)] = _SIDES[: len(part)]
        return displayed(sides[:, (0, 3, 2, 1)], self._turned)


def _joined(ends: np.ndarray) -> list[Box]:
    """Around the first and the last character of spans, whose boxes come in turn."""
    low, high = np.minimum(ends[::2], ends[1::2]), np.maximum(ends[::2], ends[1::2])
    low[:, 2:] = high[:, 2:]
    return list(map(Box._make, low.tolist()))


def displayed(boxes: np.ndarray, turned: int) -> np.ndarray:
    """[n, 4] boxes in the page's own coordinates as they lie on the page turned by so many degrees."""
    if turned == 0:
        return boxes
    left, bottom, right, top = boxes.T
    sides = {90: (bottom, -right, top, -left), 180: (-right, -top, -left, -bottom), 270: (-top, left, -bottom, right)}
    return np.stack(sides[turned], axis=-1)


def _stripped(raw: str, start: int, end: int) -> tuple[int, int]:
    while end > start + 1 and raw[end - 1].isspace():
        end -= 1
    while start < end - 1 and raw[start].isspace():
        start += 1
    return start, end


def _upright(segments: Sequence[Segment]) -> bool:
    """Whether lines run from left to right: text that is turned keeps the order of its file."""
    long = [one for one in segments if one.end - one.start > 4]
    return sum(one.box.right - one.box.left > one.height for one in long) * 2 >= len(long)


def _descending(segments: Sequence[Segment]) -> bool:
    boxes = [one.box for one in segments]
    return all(two.bottom < one.bottom + 1.5 * (one.top - one.bottom) for one, two in pairwise(boxes))


# -- gaps


def _cut_at_gaps(ruler: _Ruler, lines: list[Segment], measured: list[Segment]) -> Rows:
    """The lines, those that are measured cut where a gutter or the space between two cells runs through them."""
    spaces = _wide_spaces(ruler, [(one.start, one.end, one.height) for one in measured])
    gapped = [measured[number] for number in sorted({number for number, _, _ in spaces})]
    gaps = dict(zip((one.start for one in gapped), _words_and_gaps(ruler, gapped), strict=True))
    every = [gap for _, mine in gaps.values() for gap in mine]
    rows = [[one] for one in lines]
    for number, one in enumerate(lines if gaps else ()):
        words, mine = gaps.get(one.start, ([], []))
        at = {gap.word for gap in mine if gap.ems >= _WIDE_GAP or _shared(gap, every, lines)}
        if at:
            rows[number] = _cut(one, words, at)
    return rows


def _words_and_gaps(ruler: _Ruler, lines: Sequence[Segment]) -> Iterable[tuple[list[Segment], list[_Gap]]]:
    return [(words, _gaps(words, line.height)) for words, line in zip(ruler.words(lines), lines, strict=True)]


def _has_gutter(ruler: _Ruler, segments: Sequence[Segment]) -> bool:
    """Whether the middles of some lines, from all over the page, have gaps above one another."""
    long = [one for one in segments if 30 < one.end - one.start <= _MOST_CHARS]
    probes = [
        (one, (one.end - one.start) // 5) for one in long[len(long) // _PROBED // 2 :: max(len(long) // _PROBED, 1)]
    ]
    spaces = _wide_spaces(ruler, [(one.start + fifth, one.end - fifth, one.height) for one, fifth in probes])
    return any(min(one[2], two[2]) > max(one[1], two[1]) for one, two in combinations(spaces, 2))


def _wide_spaces(ruler: _Ruler, parts: Sequence[tuple[int, int, float]]) -> list[tuple[int, float, float]]:
    """(number of its part, left, right) of each space as wide as a gutter in parts of lines (start, end, height)."""
    spaces = [
        (number, _GAP * height, space.start() - 1, space.end())
        for number, (start, end, height) in enumerate(parts)
        if height > 0
        for space in _SPACE.finditer(ruler.raw, start, end)
    ]
    if not spaces:
        return []
    boxes = ruler.boxes([character for _, _, before, after in spaces for character in (before, after)])
    left, right = boxes[::2, 2], boxes[1::2, 0]
    wide = np.flatnonzero(right - left >= np.array([least for _, least, _, _ in spaces])).tolist()
    return [(spaces[at][0], float(left[at]), float(right[at])) for at in wide]


def _around_wide_lines(segments: Sequence[Segment]) -> list[Segment]:
    """Lines that are too wide for their characters, as those with several cells are, and those around them."""
    widths = [(one.box.right - one.box.left) / (one.end - one.start) for one in segments]
    usual = _median(widths)
    wide = [
        number
        for number, (width, one) in enumerate(zip(widths, segments, strict=True))
        if width > _SPARSE * min(usual, _LETTER * one.height) and " " in one.text
    ]
    near = {number for found in wide for number in range(max(found - 1, 0), min(found + 2, len(segments)))}
    return [segments[number] for number in sorted(near) if len(segments[number].text) <= _MOST_CHARS]


def _median(values: Sequence[float]) -> float:
    return sorted(values)[len(values) // 2] if values else 0.0


class _Gap(NamedTuple):
    word: int
    """the gap is before this word of its line"""
    left: float
    right: float
    ems: float


def _gaps(words: Sequence[Segment], height: float) -> list[_Gap]:
    pairs = enumerate(pairwise(words), 1)
    spaces = ((at, one.box.right, two.box.left) for at, (one, two) in pairs)
    return [
        _Gap(at, left, right, (right - left) / height)
        for at, left, right in spaces
        if right - left >= _GAP * height > 0
    ]


def _shared(gap: _Gap, every: Sequence[_Gap], segments: Sequence[Segment]) -> bool:
    """Whether enough lines leave the middle of this gap free for it to be a gutter."""
    middle = (gap.left + gap.right) / 2
    free = sum(other.left < middle < other.right for other in every)
    across = sum(one.box.left < middle < one.box.right for one in segments)
    return free >= 3 and 3 * free >= across


def _cut(line: Segment, words: Sequence[Segment], at: set[int]) -> list[Segment]:
    bounds = [0, *sorted(at), len(words)]
    parts = []
    for first, last in pairwise(bounds):
        inside = words[first:last]
        box = Box(inside[0].box.left, line.box.bottom, inside[-1].box.right, line.box.top)
        start, end = inside[0].start, inside[-1].end
        text = line.text[start - line.start : end - line.start]
        parts.append(Segment(start, end, box, text, line.hyphen and last == len(words)))
    return parts


# -- reading order


def _ordered(segments: list[Segment]) -> Rows:
    """Rows in reading order; several segments in a row are the cells of a table or parts of one line."""
    gutter = None if _is_table(_rows_of(segments)) else _gutter(segments)
    if gutter is None:
        return _rows_of(segments)
    result: Rows = []
    left: list[Segment] = []
    right: list[Segment] = []
    for row in [*_rows_of(segments), []]:
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


def _rows_of(segments: Sequence[Segment]) -> Rows:
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


# -- tables


def _is_table(rows: Rows) -> bool:
    """Whether all of it is one table: cells of few words in columns that agree."""
    wide = [row for row in rows if len(row) > 1]
    return len(wide) >= 2 and len(wide) >= 0.7 * len(rows) and all(map(_like_cells, wide)) and _aligned(wide)


def _like_cells(row: Sequence[Segment]) -> bool:
    if len(row) < 2 or any(one.typed for one in row):
        return False
    words = [one.words for one in row]
    return sum(words) <= 5 * len(row) and sorted(words)[len(words) // 2] <= 4 and min(words) <= 3


def _named(row: Sequence[Segment]) -> bool:
    """Whether half of the cells have a word or a number to them: parts of a formula have not."""
    return 2 * sum(bool(_SOLID.search(one.text)) for one in row) >= len(row)


def _aligned(rows: Rows) -> bool:
    return all(_in_columns(row, rows[0]) for row in rows[1:])


def _in_columns(row: Sequence[Segment], columns: Sequence[Segment]) -> bool:
    """Whether each cell stands under one cell of a row above, or most of either do."""
    under = sum(any(_overlap(one, column) for column in columns) for one in row)
    return under >= min(len(row), len(columns)) - (min(len(row), len(columns)) > 3)


def _overlap(one: Segment, two: Segment) -> bool:
    return min(one.box.right, two.box.right) > max(one.box.left, two.box.left) - 0.5 * one.height


def _table_at(rows: Rows, start: int) -> int:
    """Where the table that begins with this row ends; ``start`` where none does."""
    end = start
    while end < len(rows) and _like_cells(rows[end]) and _in_columns(rows[end], rows[start]):
        if end > start and rows[end - 1][0].box.bottom - rows[end][0].box.top > 2 * rows[end][0].height:
            break
        end += 1
    cells = max((len(row) for row in rows[start:end]), default=0)
    return end if end - start >= (2 if cells > 2 else 3) and _named(rows[start]) else start


# -- blocks


def _blocks(rows: Rows, segments: Sequence[Segment]) -> list[Block]:
    heights = [one.height for one in segments]
    usual, pitch = _median(heights), _pitch(rows)
    headings = max(heights, default=0.0) >= _TALL * usual
    blocks: list[Block] = []
    at = 0
    while at < len(rows):
        end = _table_at(rows, at) if len(rows[at]) > 1 else at
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
    return _median([step for step in steps if step > 0])


def _said(row: Sequence[Segment]) -> str:
    return row[0].text if len(row) == 1 else " ".join(one.text for one in row)


def _ends_sentence(row: Sequence[Segment]) -> bool:
    return bool(_ENDED.search(row[-1].text[-9:]))


def _paragraph_ends(rows: Rows, at: int, pitch: float) -> bool:
    """Whether there is white space before this line, and a sentence may end there."""
    step = rows[at - 1][0].box.top - rows[at][0].box.top
    return step > 1.4 * pitch > 0 and (_ends_sentence(rows[at - 1]) or bool(_CAPTION.match(_said(rows[at]))))


def _is_heading(rows: Rows, at: int, usual: float) -> bool:
    row = rows[at]
    if not _is_tall(row, usual):
        return False
    said = _said(row)
    if len(said) > 120 or said[-1:] in ".,;" or not said[:1].isalnum():
        return False
    if said[0].islower() or not any(ch.isalpha() for ch in said):
        return False
    before = rows[at - 1] if at else None
    return before is None or _is_tall(before, usual) or _ends_sentence(before)


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
        if _is_small(row, usual) and _MARKER.match(_said(row)):
            return at
    return len(rows)


# -- text


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
    if body and body[-1].kind == "prose" and not _ends_sentence(body[-1].rows[-1]):
        rows = body[-1].rows
        at = next((i for i in range(len(rows) - 1, 0, -1) if _ends_sentence(rows[i - 1])), 0)
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
            caption = _said(before.rows[-1]) if before is not None and _CAPTION.match(_said(before.rows[-1])) else ""
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
    if block.kind == "table" and _CAPTION.match(_said(before.rows[-1])):
        return "\n"
    if before.kind == "prose" == block.kind and not _ends_sentence(before.rows[-1]):
        return "\n"
    return "\n\n"

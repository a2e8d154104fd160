"""Lines cut where a gutter between columns, or the space between two cells of a table, runs through them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import combinations, pairwise
from typing import NamedTuple

import numpy as np

from retrieval.parsing.pdf.ruler import Ruler
from retrieval.parsing.pdf.segments import Box, Rows, Segment, median

_SPACE = re.compile(r"(?<=\S)\s+(?=\S)")
MOST_CHARS = 1_000
"""of a line that is looked at for columns: more is no line that people read"""
_PROBED = 5
"""lines of a page whose words are measured to see whether the page has columns"""
_LETTER = 0.5
"""width of a letter, in heights of the line, at most: the usual one of a page may be that of its table's rows"""
_SPARSE = 1.5
"""times the usual width a character that a line must have to be taken for several cells"""
_GAP = 0.8
"""width of a gutter, in heights of the line, where several lines agree on it"""
_WIDE_GAP = 2.0
"""width of a gap that parts the cells of a row by itself"""


def cut_at_gaps(ruler: Ruler, lines: list[Segment], measured: list[Segment]) -> Rows:
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


def _words_and_gaps(ruler: Ruler, lines: Sequence[Segment]) -> Iterable[tuple[list[Segment], list[_Gap]]]:
    return [(words, _gaps(words, line.height)) for words, line in zip(ruler.words(lines), lines, strict=True)]


def has_gutter(ruler: Ruler, segments: Sequence[Segment]) -> bool:
    """Whether the middles of some lines, from all over the page, have gaps above one another."""
    long = [one for one in segments if 30 < one.end - one.start <= MOST_CHARS]
    probes = [
        (one, (one.end - one.start) // 5) for one in long[len(long) // _PROBED // 2 :: max(len(long) // _PROBED, 1)]
    ]
    spaces = _wide_spaces(ruler, [(one.start + fifth, one.end - fifth, one.height) for one, fifth in probes])
    return any(min(one[2], two[2]) > max(one[1], two[1]) for one, two in combinations(spaces, 2))


def _wide_spaces(ruler: Ruler, parts: Sequence[tuple[int, int, float]]) -> list[tuple[int, float, float]]:
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


def around_wide_lines(segments: Sequence[Segment]) -> list[Segment]:
    """Lines that are too wide for their characters, as those with several cells are, and those around them."""
    widths = [(one.box.right - one.box.left) / (one.end - one.start) for one in segments]
    usual = median(widths)
    wide = [
        number
        for number, (width, one) in enumerate(zip(widths, segments, strict=True))
        if width > _SPARSE * min(usual, _LETTER * one.height) and " " in one.text
    ]
    near = {number for found in wide for number in range(max(found - 1, 0), min(found + 2, len(segments)))}
    return [segments[number] for number in sorted(near) if len(segments[number].text) <= MOST_CHARS]


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

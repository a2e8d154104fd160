"""Running headers and footers: lines at the edges of pages that come again from page to page."""

from __future__ import annotations

import bisect
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

EDGE = 3
"""lines at the top and at the bottom of a page that are looked at; where all of them come again, none is furniture"""
_LEAST = 3
"""pages on which a line must stand to be furniture"""
_REACH = 20
"""pages before and after that are looked at"""
_NEAR = 15.0
"""points by which its height may differ"""
_NUMBER = re.compile(r"\d+")
_ROMAN = re.compile(r"[ivxlc]+")


@dataclass(frozen=True)
class Edge:
    """A line at an edge of a page: ``depth`` 0 is the outermost."""

    page: int
    depth: int
    text: str
    height: float

    @cached_property
    def ahead(self) -> frozenset[int]:
        """By how much the numbers of the line are ahead of the page."""
        words = self.text.casefold().split()
        numbers = [*_NUMBER.findall(self.text), *filter(_ROMAN.fullmatch, words)]
        return frozenset(_value(number) - self.page for number in numbers)


def furniture(edges: Sequence[Edge]) -> dict[int, int]:
    """Of the lines at one edge (all tops, or all bottoms), by rising page: page → how many of the outermost are
    furniture."""
    known: defaultdict[str, list[Edge]] = defaultdict(list)
    for edge in edges:
        known[_key(edge.text)].append(edge)
    again = {
        (edge.page, edge.depth)
        for key, same in known.items()
        if len(same) >= _LEAST
        for edge in same
        if _comes_again(key, edge, _within_reach(edge, same))
    }
    counts: dict[int, int] = {}
    for page in {edge.page for edge in edges}:
        depths = [(page, depth) in again for depth in range(EDGE)]
        count = depths.index(False) if False in depths else 0
        if count:
            counts[page] = count
    return counts


def _key(text: str) -> str:
    words = _NUMBER.sub("#", text.casefold()).split()
    return " ".join(
        "#" if at in (0, len(words) - 1) and _ROMAN.fullmatch(word) else word for at, word in enumerate(words)
    )


def _within_reach(edge: Edge, same: Sequence[Edge]) -> Sequence[Edge]:
    """Those on pages nearby; edges are in the order of their pages."""
    first = bisect.bisect_left(same, edge.page - _REACH, key=lambda other: other.page)
    last = bisect.bisect_right(same, edge.page + _REACH, key=lambda other: other.page)
    return same[first:last]


def _comes_again(key: str, edge: Edge, same: Sequence[Edge]) -> bool:
    near = [other for other in same if abs(other.height - edge.height) <= _NEAR]
    if any(ch.isalpha() for ch in key):
        # A foot that carries the page's number may stand as high as the text above it ends.
        numbered = {other.page for other in same if other.ahead & edge.ahead} if "#" in key else set()
        pages = numbered if len(numbered) >= _LEAST else {other.page for other in near}
        # Left and right pages may differ; headings of chapters, numbered alike, are further apart.
        return len(pages) >= _LEAST and any(0 < abs(page - edge.page) <= 2 for page in pages)
    if "#" not in key:
        return False
    # Numbers alone may be anything; those of pages rise with them.
    return len({other.page for other in near if other.ahead & edge.ahead}) >= _LEAST


def _value(number: str) -> int:
    if number.isdigit():
        return int(number[:9])
    worth = [{"i": 1, "v": 5, "x": 10, "l": 50, "c": 100}[letter] for letter in number]
    return sum(-one if one < two else one for one, two in zip(worth, [*worth[1:], 0], strict=True))

"""Where in its file a span of stored text stands: a cell, a paragraph, a slide, a chapter, a part of a mail.

A place is a path from the whole to the part, as ``("Sales", "Zone EUR", "B7")``; "Sales, Zone EUR, B7" for people.
"""

from __future__ import annotations

import bisect
import json
import zlib
from collections.abc import Sequence

from retrieval.types import Page, Place


def place_of(places: Sequence[Place], pages: Sequence[Page], start: int, end: int) -> str:
    """The place of the characters ``start:end`` for people, by page where nothing finer is known; "" for neither."""
    touched = _touched(places, start, end)
    if touched:
        return _said(touched[0].path, touched[-1].path)
    if len(pages) > 1:
        first = pages[_at([page.start for page in pages], start)].number
        last = pages[_at([page.start for page in pages], max(start, end - 1))].number
        return f"page {first}" if first == last else f"pages {first} to {last}"
    return ""


def pack(places: Sequence[Place]) -> bytes:
    """Small: gaps, lengths and paths apart, deflated."""
    starts = [place.start for place in places]
    gaps = [start - before for before, start in zip([0, *starts], starts, strict=False)]
    columns = [gaps, [place.end - place.start for place in places], [place.path for place in places]]
    return zlib.compress(json.dumps(columns, ensure_ascii=False, separators=(",", ":")).encode(), 6)


def unpack(packed: bytes) -> list[Place]:
    places, at = [], 0
    for gap, length, path in zip(*json.loads(zlib.decompress(packed)), strict=True):
        at += gap
        places.append(Place(at, at + length, tuple(path)))
    return places


def _touched(places: Sequence[Place], start: int, end: int) -> Sequence[Place]:
    """Those that overlap the span, else none."""
    first = bisect.bisect_right(places, start, key=lambda place: place.start) - 1
    if first < 0 or places[first].end <= start:
        first += 1
    last = bisect.bisect_left(places, max(end, start + 1), lo=first, key=lambda place: place.start)
    return places[first:last]


def _at(starts: list[int], offset: int) -> int:
    return max(bisect.bisect_right(starts, offset) - 1, 0)


def _said(first: tuple[str, ...], last: tuple[str, ...]) -> str:
    """Both ends in one phrase: what they share, then from … to …."""
    if first == last:
        return ", ".join(first)
    shared = 0
    while shared < min(len(first), len(last)) - 1 and first[shared] == last[shared]:
        shared += 1
    if shared == 0:
        return f"{', '.join(first)} to {', '.join(last)}"
    return ", ".join([*first[:shared], f"{first[-1]} to {last[-1]}"])

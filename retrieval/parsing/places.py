"""Where in its file a span of stored text stands: a cell, a paragraph, a slide, a chapter, a part of a mail.

A place is a path from the whole to the part, as ``("Sales", "Zone EUR", "B7")``; "Sales, Zone EUR, B7" for people.
Stored they are in blocks: a workbook has a million, and who asks for the place of a citation unpacks those around it.
"""

from __future__ import annotations

import bisect
import json
import zlib
from collections.abc import Iterator, Sequence

import numpy as np

from retrieval.parsing.document import page_at
from retrieval.types import Page, Place

BLOCK = 1000
"""places"""
_MARK = b"P2"


def place_of(places: Sequence[Place], pages: Sequence[Page], start: int, end: int) -> str:
    """The place of the characters ``start:end`` for people, by page where nothing finer is known; "" for neither."""
    touched = _touched(places, start, end)
    if touched:
        return _said(touched[0].path, touched[-1].path)
    if len(pages) > 1:
        first, last = page_at(pages, start), page_at(pages, max(start, end - 1))
        return f"page {first}" if first == last else f"pages {first} to {last}"
    return ""


def pack(places: Sequence[Place]) -> bytes:
    """Small: blocks of so many places, behind a table of where each begins and how many bytes it has."""
    each = [places[at : at + BLOCK] for at in range(0, len(places), BLOCK)]
    blocks = [_packed(block) for block in each]
    table = np.array([(block[0].start, len(data)) for block, data in zip(each, blocks, strict=True)], "<i8")
    return b"".join([_MARK, len(blocks).to_bytes(4, "little"), table.tobytes(), *blocks])


def unpack(packed: bytes) -> list[Place]:
    return [place for block in _blocks(packed) for place in _unpacked(block)]


def around(packed: bytes, start: int, end: int) -> list[Place]:
    """All places that overlap the characters ``start:end``, and more."""
    return [place for block in _blocks(packed, start, end) for place in _unpacked(block)]


def _packed(places: Sequence[Place]) -> bytes:
    """Gaps, lengths and paths apart, deflated."""
    starts = [place.start for place in places]
    gaps = [start - before for before, start in zip([0, *starts], starts, strict=False)]
    columns = [gaps, [place.end - place.start for place in places], [place.path for place in places]]
    return zlib.compress(json.dumps(columns, ensure_ascii=False, separators=(",", ":")).encode(), 6)


def _unpacked(block: bytes) -> Iterator[Place]:
    at = 0
    for gap, length, path in zip(*json.loads(zlib.decompress(block)), strict=True):
        at += gap
        yield Place(at, at + length, tuple(path))


def _blocks(packed: bytes, start: int = 0, end: int | None = None) -> Iterator[bytes]:
    """Those that may hold places of the characters ``start:end``."""
    if not packed.startswith(_MARK):  # as one block, by earlier releases
        yield packed
        return
    count, head = int.from_bytes(packed[2:6], "little"), 6
    starts, sizes = np.frombuffer(packed, "<i8", 2 * count, head).reshape(count, 2).T
    ends = head + starts.nbytes + sizes.nbytes + np.cumsum(sizes)
    first = max(int(np.searchsorted(starts, start, "right")) - 1, 0)
    last = count if end is None else int(np.searchsorted(starts, max(end, start + 1), "left"))
    for number in range(first, last):
        yield packed[ends[number] - sizes[number] : ends[number]]


def _touched(places: Sequence[Place], start: int, end: int) -> Sequence[Place]:
    """Those that overlap the span, else none."""
    first = bisect.bisect_right(places, start, key=lambda place: place.start) - 1
    if first < 0 or places[first].end <= start:
        first += 1
    last = bisect.bisect_left(places, max(end, start + 1), lo=first, key=lambda place: place.start)
    return places[first:last]


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

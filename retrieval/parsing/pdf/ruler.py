"""Where the characters of a page stand, asked of PDFium in one call a character and kept in numpy.

Geometry is asked for sparingly (the ends of every line, the words of some), for it costs more than the text.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterable, Sequence

import numpy as np
import pypdfium2 as pdfium

from retrieval.parsing.pdf.segments import BREAK, Box, Segment

_WORD = re.compile(r"\S+")
_BUFFER = (pdfium.raw.FS_RECTF * 512)()
_SLOTS = [ctypes.byref(one) for one in _BUFFER]
_SIDES = np.frombuffer(_BUFFER, dtype=np.float32).reshape(-1, 4)
"""the same: left, top, right, bottom"""


class Ruler:
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

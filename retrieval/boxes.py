"""Where on the pages of a PDF a span of its stored text is printed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from retrieval.parsing.pdf import open_pdf, page_text
from retrieval.types import Page


@dataclass(frozen=True)
class Box:
    """A rectangle around a part of one line, in PDF points from the page's lower left corner, page size included."""

    page: int
    left: float
    bottom: float
    right: float
    top: float
    page_width: float
    page_height: float


def boxes(data: bytes, name: str, pages: Sequence[Page], text: str, start: int, end: int) -> list[Box]:
    """One box a line for the characters ``start:end``; ``text`` is the stored text that the pages are spans of.

    A page whose text is not what PDFium reads now (another version of it) gives no box rather than a wrong one.
    """
    document = open_pdf(data, name)
    try:
        return [
            box
            for page in pages
            if page.start < end and start < page.end
            for box in _boxes_of_page(document, page, text, max(start, page.start), min(end, page.end))
        ]
    finally:
        document.close()


def _boxes_of_page(document, page: Page, text: str, start: int, end: int) -> Iterator[Box]:  # type: ignore[no-untyped-def]
    pdf_page = document[page.number - 1]
    text_page = pdf_page.get_textpage()
    try:
        now, index = page_text(text_page)
        if now != text[page.start : page.end]:
            return
        width, height = pdf_page.get_size()
        characters = (
            text_page.get_charbox(int(index[offset - page.start]))
            for offset in range(start, end)
            if not text[offset].isspace()
        )
        for left, bottom, right, top in _lines(characters):
            yield Box(page.number, left, bottom, right, top, width, height)
    finally:
        text_page.close()
        pdf_page.close()


Rectangle = tuple[float, float, float, float]


def _lines(characters: Iterator[Rectangle]) -> Iterator[Rectangle]:
    """Join the boxes of characters that follow one another on a line."""
    line: Rectangle | None = None
    for left, bottom, right, top in characters:
        if right <= left or top <= bottom:  # PDFium gives what is not printed no extent
            continue
        if line is not None and left >= line[0] - 1 and min(top, line[3]) - max(bottom, line[1]) > 0:
            line = (line[0], min(line[1], bottom), max(line[2], right), max(line[3], top))
            continue
        if line is not None:
            yield line
        line = (left, bottom, right, top)
    if line is not None:
        yield line

"""Where on the pages of a PDF a span of its stored text is printed, and the pages as images.

Both open the file, which may be hostile: the library calls them in the parser's sandbox alone.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from io import BytesIO

import pypdfium2 as pdfium

from retrieval.errors import NotFound
from retrieval.parsing.pdf import ocr
from retrieval.parsing.pdf.reader import is_unread, open_pdf, page_text, picture_text, stored_index
from retrieval.types import Box, Page

HIGHEST_IMAGE = 4000
"""pixels"""
_FINE = 64
"""steps a point: PDFium maps to whole numbers"""


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
        now, raw_index = page_text(document, pdf_page)
        index = stored_index(now, raw_index, text[page.start : page.end])
        if index is None and ocr.available() and is_unread(pdf_page, now):
            now = picture_text(pdf_page)
            index = stored_index(now, raw_index, text[page.start : page.end])
        if index is None:
            return
        width, height = pdf_page.get_size()
        characters: Iterator[Rectangle] = (
            text_page.get_charbox(at) if (at := int(index[offset - page.start])) >= 0 else now.values[-1 - at]
            for offset in range(start, end)
            if not text[offset].isspace()
        )
        for line in _lines(characters):
            yield Box(page.number, *_displayed(pdf_page, line, width, height), width, height)
    finally:
        text_page.close()
        pdf_page.close()


Rectangle = tuple[float, float, float, float]
"""left, bottom, right, top"""


def _displayed(page, rectangle: Rectangle, width: float, height: float) -> Rectangle:  # type: ignore[no-untyped-def]
    """From the page's own coordinates, which know nothing of its rotation and crop box."""
    corners = []
    for x, y in (rectangle[:2], rectangle[2:]):
        across, down = ctypes.c_int(), ctypes.c_int()
        pdfium.raw.FPDF_PageToDevice(
            page, 0, 0, round(width * _FINE), round(height * _FINE), 0, x, y, ctypes.byref(across), ctypes.byref(down)
        )
        corners.append((across.value / _FINE, height - down.value / _FINE))
    (x1, y1), (x2, y2) = corners
    return min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)


def page_image(data: bytes, name: str, number: int, width: int) -> bytes:
    """PNG of a page, ``width`` pixels wide, less where it would be higher than ``HIGHEST_IMAGE``.

    Errors: NotFound (no such page), UnreadableFile and its kinds.
    """
    document = open_pdf(data, name)
    try:
        if not 1 <= number <= len(document):
            raise NotFound(f"{name} has no page {number}; it has {len(document)}")
        page = document[number - 1]
        page_width, page_height = page.get_size()
        image = page.render(scale=min(width / page_width, HIGHEST_IMAGE / page_height)).to_pil()
    finally:
        document.close()
    buffer = BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


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

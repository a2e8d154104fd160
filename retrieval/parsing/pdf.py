"""PDF text by pypdfium2, page by page, with a map from stored characters to the glyphs on the page.

PDFium ends lines with CR LF and marks a hyphen that breaks a word over two lines with U+FFFE; stored are LF and the
word in one piece.
"""

from __future__ import annotations

import numpy as np
import pypdfium2 as pdfium

from retrieval.errors import DamagedFile, EmptyFile, EncryptedFile, OversizedFile
from retrieval.parsing.document import PageProgress, ParsedDocument, join_pages, storable
from retrieval.parsing.limits import Limits

_FPDF_ERR_PASSWORD = 4
_DROPPED = "\r\ufffe\x02"


def open_pdf(data: bytes, name: str) -> pdfium.PdfDocument:
    """Errors: EncryptedFile, DamagedFile."""
    try:
        return pdfium.PdfDocument(data)
    except pdfium.PdfiumError as error:
        if getattr(error, "err_code", None) == _FPDF_ERR_PASSWORD:
            raise EncryptedFile(
                f"{name} is protected by a password; save a copy without one and ingest that"
            ) from error
        raise DamagedFile(
            f"{name} is cut off or damaged: no PDF reader can open it ({error}); get the file again"
        ) from error


def parse_pdf(data: bytes, name: str, limits: Limits, progress: PageProgress | None = None) -> ParsedDocument:
    """Text of every page, pages parted by a blank line. Memory: one page at a time, and the text."""
    document = open_pdf(data, name)
    try:
        count = len(document)
        if count > limits.pdf_pages:
            raise OversizedFile(f"{name} has {count} pages and the limit is {limits.pdf_pages}; split it")
        texts: list[str] = []
        chars = 0
        for number in range(count):
            texts.append(_read_page(document, number, name)[0])
            chars += len(texts[-1])
            if chars > limits.text_chars:
                raise OversizedFile(f"{name} has more than {limits.text_chars} characters of text; split it")
            if progress:
                progress(number + 1, count)
    finally:
        document.close()
    if not any(text.strip() for text in texts):
        raise EmptyFile(
            f"{name} has {count} page{'s' * (count != 1)} but no text in them (scanned images?); "
            "run it through OCR first"
        )
    return join_pages(texts, "application/pdf")


def _read_page(document: pdfium.PdfDocument, number: int, name: str) -> tuple[str, np.ndarray]:
    try:
        page = document[number]
    except pdfium.PdfiumError as error:
        raise DamagedFile(
            f"{name} is damaged: page {number + 1} cannot be read ({error}); get the file again"
        ) from error
    text_page = page.get_textpage()
    try:
        return page_text(text_page)
    finally:
        text_page.close()
        page.close()


def page_text(text_page: pdfium.PdfTextPage) -> tuple[str, np.ndarray]:
    """(stored text of the page, int64[len(text)] index of each character in PDFium's numbering)."""
    raw = text_page.get_text_range(errors="replace") if text_page.count_chars() else ""
    # PDFium counts UTF-16 units; Python counts code points.
    units = np.fromiter((1 + (ch > "\uffff") for ch in raw), dtype=np.int64, count=len(raw))
    index = np.cumsum(units) - units
    kept = np.fromiter((ch not in _DROPPED for ch in raw), dtype=bool, count=len(raw))
    return storable("".join(ch for ch in raw if ch not in _DROPPED)), index[kept]

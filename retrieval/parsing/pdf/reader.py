"""PDF text by pypdfium2, page by page, with a map from stored characters to the glyphs on the page.

PDFium gives a page's characters; ``layout`` puts its lines in order, ``lettering`` mends words that printing takes
apart, ``forms`` adds what is typed into fields, ``furniture`` finds running headers and footers, which are left out.
Pages that are pictures are read by ``ocr`` where it is installed. What could not be read is noted page by page.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pypdfium2 as pdfium

from retrieval.errors import DamagedFile, EmptyFile, EncryptedFile, OversizedFile
from retrieval.parsing.document import Heading, PageProgress, ParsedDocument, Table, storable
from retrieval.parsing.limits import Limits
from retrieval.parsing.pdf import ocr
from retrieval.parsing.pdf.forms import form_values
from retrieval.parsing.pdf.furniture import EDGE, Edge, furniture
from retrieval.parsing.pdf.lettering import join_accents, mend_hyphens, words_of
from retrieval.parsing.pdf.page_text import PageText, write
from retrieval.parsing.pdf.reading_order import arranged, read_blocks
from retrieval.parsing.pdf.segments import BREAK
from retrieval.types import Page, Place

_FPDF_ERR_PASSWORD = 4
_MARKS = str.maketrans({"\x02": BREAK, "\x00": " "})  # older PDFiums mark a hyphen with U+0002
_FEW = 200
"""characters; a page with fewer is looked at for pictures of text"""
_PICTURE = 0.85
"""share of a page that a picture covers to be a scan of it"""
_LONGEST_CAUSE = 200
_UNKNOWN = re.compile("[\ufffd\ue000-\uf8ff]")


def open_pdf(data: bytes, name: str) -> pdfium.PdfDocument:
    """Errors: EncryptedFile, DamagedFile."""
    try:
        document = pdfium.PdfDocument(data)
        if document.get_formtype() != pdfium.raw.FORMTYPE_NONE:
            document.init_forms()
    except pdfium.PdfiumError as error:
        if getattr(error, "err_code", None) == _FPDF_ERR_PASSWORD:
            raise EncryptedFile(
                f"{name} is protected by a password; save a copy without one and ingest that"
            ) from error
        raise DamagedFile(
            f"{name} is cut off or damaged: no PDF reader can open it ({error}); get the file again"
        ) from error
    return document


def parse_pdf(data: bytes, name: str, limits: Limits, progress: PageProgress | None = None) -> ParsedDocument:
    """Text of every page. Memory: one page at a time, and the text."""
    document = open_pdf(data, name)
    try:
        count = len(document)
        if count > limits.pdf_pages:
            raise OversizedFile(f"{name} has {count} pages and the limit is {limits.pdf_pages}; split it")
        read = _Read(ocr.Clock(limits.ocr_seconds) if ocr.available() else None)
        chars = 0
        for number in range(count):
            chars += read.add(document, number, name)
            if chars > limits.text_chars:
                raise OversizedFile(f"{name} has more than {limits.text_chars} characters of text; split it")
            if progress:
                progress(number + 1, count)
    finally:
        document.close()
    if not any(page.text.strip() for page in read.pages):
        remedy = (
            f"run it through OCR first, or {ocr.HOW_TO}"
            if read.clock is None
            else f"and none was recognised by OCR{''.join(f' ({cause})' for cause in read.failed)}; nothing to ingest"
        )
        raise EmptyFile(f"{name} has {count} page{'s' * (count != 1)} but no text in them (scanned images?); {remedy}")
    return read.document()


@dataclass
class _Read:
    """What was read of a document so far.

    Attributes:
        clock: None where text in pictures cannot be recognised.
        pictures: numbers of pages that are pictures and were not read.
        garbled: those whose letters are not known.
        recognised: those that were read from their picture.
        late: of pictures and garbled, those for which no time was left.
        failed: and those of which recognition failed, by its cause.
    """

    clock: ocr.Clock | None
    pages: list[PageText] = field(default_factory=list)
    pictures: list[int] = field(default_factory=list)
    garbled: list[int] = field(default_factory=list)
    recognised: list[int] = field(default_factory=list)
    late: list[int] = field(default_factory=list)
    failed: dict[str, list[int]] = field(default_factory=dict)

    def add(self, document: pdfium.PdfDocument, number: int, name: str) -> int:
        """Read a page: how many characters it has."""
        page = _load_page(document, number, name)
        try:
            text, _ = page_text(document, page)
            unread = self.pictures if _is_picture(page, text) else self.garbled if _is_garbled(text) else None
            if unread is not None:
                text = self._from_picture(page, text, number + 1, unread)
        finally:
            page.close()
        text.sources.clear()  # they serve boxes alone
        self.pages.append(text)
        return len(text.text)

    def _from_picture(self, page: pdfium.PdfPage, text: PageText, number: int, unread: list[int]) -> PageText:
        """The page as its picture shows it, where that can be read; else as it was, and counted among the unread."""
        if self.clock is None:
            unread.append(number)
        elif not self.clock.has_time():
            unread.append(number)
            self.late.append(number)
        else:
            try:
                shown = picture_text(page)
            except Exception as error:  # the libraries below raise what they like; the other pages are read
                unread.append(number)
                cause = str(error).strip().rpartition("\n")[2]  # of a trace, its last line
                self.failed.setdefault(f"{type(error).__name__}: {cause}"[:_LONGEST_CAUSE], []).append(number)
                return text
            if unread is self.garbled or len(shown.text) > len(text.text):
                self.recognised.append(number)
                return shown
            if not text.text:
                unread.append(number)
        return text

    def document(self) -> ParsedDocument:
        left_out = _left_out(self.pages)
        spans = [_kept(page, *left_out.get(number, (0, 0))) for number, page in enumerate(self.pages)]
        words = words_of(page.text for page in self.pages) if any(BREAK in page.text for page in self.pages) else set()
        parts: list[str] = []
        pages: list[Page] = []
        places: list[Place] = []
        tables: list[Table] = []
        headings: list[Heading] = []
        at = 0
        for number, (page, (start, end)) in enumerate(zip(self.pages, spans, strict=True), 1):
            text, dropped = mend_hyphens(page.text[start:end], words)
            if parts:
                parts.append(separator := _separator(parts[-1], text))
                at += len(separator)
            place = _Moved(start, end, at, np.array(dropped))
            tables += [Table(head, place.spans(rows)) for head, rows in page.tables]
            headings += [Heading(*span, 1) for span in place.spans(page.headings)]
            pages.append(Page(number, at, at + len(text)))
            if self.recognised:  # the others are told by their pages
                how = ("read by OCR",) if number in self.recognised else ()
                places.append(Place(at, at + len(text), (f"page {number}", *how)))
            parts.append(text)
            at += len(text)
        return ParsedDocument(
            storable("".join(parts)),
            pages,
            "application/pdf",
            notes=list(self._notes(spans)),
            places=places,
            tables=[table for table in tables if table.rows],
            headings=headings,
            unread_share=len({*self.pictures, *self.garbled}) / len(self.pages),
        )

    def _notes(self, spans: Sequence[tuple[int, int]]) -> Iterator[str]:
        if self.recognised:
            what = "its picture" if len(self.recognised) == 1 else "their pictures"
            yield f"{_numbers(self.recognised)}: read from {what} by OCR; letters may be wrong"
        if self.pictures:
            one = len(self.pictures) == 1
            said = f"{_numbers(self.pictures)} {'is a picture' if one else 'are pictures'} (a scan?)"
            if self.clock is None:
                yield (
                    f"{said} with little or no text layer; what is in pictures was not read: run the file through OCR "
                    f"and add it again, or {ocr.HOW_TO}"
                )
            else:
                yield f"{said} in which no text was read"
        if self.garbled:
            yield f"{_numbers(self.garbled)}: the fonts do not say which letters they print; much of the text is lost"
        if self.late:
            yield f"{_numbers(self.late)}: no time was left for OCR; split the file"
        for cause, numbers in self.failed.items():
            yield f"{_numbers(numbers)}: OCR failed ({cause})"
        running = _running(self.pages, spans)
        if running:
            pages = _numbers([number for number, _ in running])
            yield f"running headers and footers were left out on {pages}, as “{running[0][1]}”"


@dataclass(frozen=True)
class _Moved:
    """Where the characters ``start:end`` of a page's text went in the document's."""

    start: int
    end: int
    to: int
    dropped: np.ndarray

    def spans(self, spans: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
        inside = [span for span in spans if self.start <= span[0] and span[1] <= self.end]
        return [(self._offset(start), self._offset(end)) for start, end in inside]

    def _offset(self, offset: int) -> int:
        own = offset - self.start
        return self.to + own - int(np.searchsorted(self.dropped, own))


def _load_page(document: pdfium.PdfDocument, number: int, name: str) -> pdfium.PdfPage:
    try:
        return document[number]
    except pdfium.PdfiumError as error:
        raise DamagedFile(
            f"{name} is damaged: page {number + 1} cannot be read ({error}); get the file again"
        ) from error


def page_text(document: pdfium.PdfDocument, page: pdfium.PdfPage) -> tuple[PageText, np.ndarray]:
    """The page's text in reading order, headers and footers still in it; and what ``PageText.index`` asks for."""
    text_page = page.get_textpage()
    try:
        raw = text_page.get_text_range(errors="replace") if text_page.count_chars() else ""
        index = np.arange(len(raw))
        if len(raw.encode("utf-16-le", "replace")) > 2 * len(
            raw
        ):  # PDFium counts UTF-16 units; Python counts code points.
            units = np.fromiter((1 + (ch > "\uffff") for ch in raw), dtype=np.int64, count=len(raw))
            index = np.cumsum(units) - units
        raw = raw.translate(_MARKS) if "\x02" in raw or "\x00" in raw else raw
        if not raw.isascii():
            raw, index = join_accents(raw, index, lambda at: text_page.get_charbox(at)[::2])
        values = form_values(document, page)
        blocks = read_blocks(text_page, raw, index, [segment for segment, _ in values], page.get_rotation())
        written = write(blocks)
        written.values = [rectangle for _, rectangle in values]
        return written, index
    finally:
        text_page.close()


def picture_text(page: pdfium.PdfPage) -> PageText:
    """What is recognised in the picture of a page, in reading order."""
    found = ocr.recognise(page)
    written = write(arranged([segment for segment, _ in found]))
    written.values = [rectangle for _, rectangle in found]
    return written


def stored_index(page: PageText, raw_index: np.ndarray, stored: str) -> np.ndarray | None:
    """int64[len(stored)] as of ``PageText.index``, for the text of the page as a document stores it; None where the
    page does not read so (another version of the file, or of this program, stored it)."""
    index = page.index(raw_index)
    for first in range(min(EDGE, len(page.lines)) + 1):
        for last in range(min(EDGE, len(page.lines) - first) + 1):
            start, end = _kept(page, first, last)
            found = _mended_as(page.text[start:end], index[start:end], stored)
            if found is not None:
                return found
    return None


def _mended_as(text: str, index: np.ndarray, stored: str) -> np.ndarray | None:
    if not len(stored) <= len(text) <= len(stored) + text.count(BREAK):
        return None
    kept = np.ones(len(text), dtype=bool)
    at = 0
    for own, ch in enumerate(storable(text.replace(BREAK, "\0"))):
        if text[own] == BREAK:
            kept[own] = stored[at : at + 1] == "-" and (text[own + 1 : own + 2] != "-")
        elif stored[at : at + 1] != ch:
            return None
        at += kept[own]
    return index[kept] if at == len(stored) else None


def is_unread(page: pdfium.PdfPage, text: PageText) -> bool:
    """Whether the text is not what the page shows, so that it may be read from its picture."""
    return _is_picture(page, text) or _is_garbled(text)


def _is_garbled(text: PageText) -> bool:
    return not text.text.isascii() and len(_UNKNOWN.findall(text.text)) > 0.2 * len(text.text)


def _is_picture(page: pdfium.PdfPage, text: PageText) -> bool:
    """Whether what is on the page is an image, or drawn without letters."""
    letters = len(text.text)
    if letters >= _FEW:
        return False
    width, height = page.get_size()
    drawn = 0
    for one in page.get_objects(max_depth=3):
        if one.type == pdfium.raw.FPDF_PAGEOBJ_IMAGE:
            left, bottom, right, top = one.get_bounds()
            if (right - left) * (top - bottom) >= _PICTURE * width * height or not letters:
                return True
        drawn += one.type in (pdfium.raw.FPDF_PAGEOBJ_PATH, pdfium.raw.FPDF_PAGEOBJ_SHADING)
    return not letters and drawn > 20  # a line or two are an empty page's frame


def _left_out(pages: Sequence[PageText]) -> dict[int, tuple[int, int]]:
    """page → (lines at its top, lines at its bottom) that are running headers and footers."""
    tops = furniture([edge for number, page in enumerate(pages) for edge in _edges(number, page, 1)])
    bottoms = furniture([edge for number, page in enumerate(pages) for edge in _edges(number, page, -1)])
    return {
        number: (first, last)
        for number, page in enumerate(pages)
        if (first := tops.get(number, 0)) + (last := bottoms.get(number, 0)) < len(page.lines)
    }


def _edges(number: int, page: PageText, step: int) -> Iterator[Edge]:
    outermost = slice(None, EDGE) if step > 0 else slice(None, -EDGE - 1, -1)
    for depth, ((start, end), height) in enumerate(zip(page.lines[outermost], page.tops[outermost], strict=True)):
        text = page.text[start:end]
        if "\t" in text:  # rows of a table may well be alike
            return
        yield Edge(number, depth, text, height)


def _kept(page: PageText, first: int, last: int) -> tuple[int, int]:
    """The part of the page's text without so many first and last lines."""
    lines = page.lines[first : len(page.lines) - last]
    return (lines[0][0], lines[-1][1]) if lines else (0, 0)


def _running(pages: Sequence[PageText], spans: Sequence[tuple[int, int]]) -> list[tuple[int, str]]:
    """(page, its running header or footer) of those that have one."""
    return [
        (number, " ".join((page.text[:start] or page.text[end:]).split())[:80])
        for number, (page, (start, end)) in enumerate(zip(pages, spans, strict=True), 1)
        if page.text and (start > 0 or end < len(page.text))
    ]


def _separator(before: str, after: str) -> str:
    """A sentence that goes on over the page's end is not parted."""
    return "\n" if before[-1:].isalnum() | (before[-1:] in ",;-–—") and after[:1].islower() else "\n\n"


def _numbers(pages: Sequence[int]) -> str:
    """Numbers of pages, in words: "pages 2 to 6 and 9"."""
    runs: list[list[int]] = []
    for page in pages:
        if runs and page == runs[-1][-1] + 1:
            runs[-1].append(page)
        else:
            runs.append([page])
    said = [str(run[0]) if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in runs]
    listed = said[0] if len(said) == 1 else f"{', '.join(said[:-1])} and {said[-1]}"
    return f"page{'s' * (len(pages) > 1)} {listed}"

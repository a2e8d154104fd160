"""A document's text put together part by part, with the place of each part."""

from __future__ import annotations

from retrieval.parsing.document import Heading, ParsedDocument, Table, storable
from retrieval.types import Page, Place


class TextBuilder:
    """Text that grows; ``path`` says where in the file what is added stands.

    Attributes:
        length: characters so far.
    """

    def __init__(self) -> None:
        self.length = 0
        self.notes: list[str] = []
        self._parts: list[str] = []
        self._places: list[Place] = []
        self._pages: list[int] = []
        self._tables: list[Table] = []
        self._headings: list[Heading] = []

    def add(self, text: str, path: tuple[str, ...] = ()) -> None:
        if not text:
            return
        self._parts.append(storable(text))
        if path:
            self._places.append(Place(self.length, self.length + len(text), path))
        self.length += len(text)

    def add_heading(self, text: str, level: int, path: tuple[str, ...] = (), marks: str = "") -> None:
        """A line that names what follows it; ``marks`` are written before it and are no part of the name."""
        at = self.length + len(marks)
        self.add(marks + text, path)
        if text:
            self._headings.append(Heading(at, self.length, level))

    def part(self, separator: str = "\n\n") -> None:
        """Begin anew after ``separator`` (line breaks), of which what is there already counts."""
        if self.length:
            end = self._parts[-1]
            self.add(separator[len(end) - len(end.rstrip("\n")) :])

    def begin_page(self) -> None:
        """What is added from now on stands on the next page (sheet, slide, chapter)."""
        self._pages.append(self.length)

    def add_table(self, header: str, rows: list[tuple[int, int]]) -> None:
        if rows:
            self._tables.append(Table(header, rows))

    def embed(self, part: ParsedDocument, *path: str) -> None:
        """Add a document that stands within this one, its places below ``path``; notes are the caller's to tell."""
        at = self.length
        inner = part.places or [
            Place(page.start, page.end, (f"page {page.number}",) if len(part.pages) > 1 else ()) for page in part.pages
        ]
        self._parts.append(part.text)
        self._places += [Place(at + place.start, at + place.end, (*path, *place.path)) for place in inner]
        for table in part.tables:
            self.add_table(table.header, [(at + start, at + end) for start, end in table.rows])
        self._headings += [Heading(at + start, at + end, level) for start, end, level in part.headings]
        self.length += len(part.text)

    def document(self, media_type: str, *, unread_share: float = 0.0) -> ParsedDocument:
        text = "".join(self._parts).rstrip("\n")  # an empty page at the end leaves what parts it from the last
        starts = [min(start, len(text)) for start in self._pages] or [0]
        ends = [*starts[1:], len(text)]
        pages = [Page(number, start, end) for number, (start, end) in enumerate(zip(starts, ends, strict=True), 1)]
        return ParsedDocument(
            text, pages, media_type, self.notes, self._places, self._tables, unread_share, headings=self._headings
        )

"""Documents of a request, and citations of them as Anthropic's objects."""

from __future__ import annotations

import base64
import binascii
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, Literal

from retrieval.parsing.document import ParsedDocument
from retrieval.types import Page
from service.answering.passages import Passage
from service.api.anthropic.schemas import DocumentBlock, PdfSource, SearchResultBlock, TextSource
from service.errors import InvalidRequest

GAP = "\n\n"
"""Between the blocks of a document, where it is read as one text."""
Read = Callable[[bytes, str], ParsedDocument]
"""Reads a file: its bytes and its name."""


@dataclass(frozen=True)
class Source:
    """One document of a request.

    Attributes:
        index: among the request's documents, or among its search results.
        ends: of a document in blocks: where each ends in `text`.
        pages: of a PDF.
        origin: of a search result: its ``source``.
    """

    kind: Literal["text", "blocks", "pages", "search_result"]
    index: int
    title: str | None
    text: str
    ends: tuple[int, ...] = ()
    pages: tuple[Page, ...] = ()
    origin: str = ""
    context: str = field(default="", repr=False)

    def passage(self, number: int) -> Passage:
        """As evidence, under its number in the request."""
        named = f"{self.title or f'document {number + 1}'}{f', {self.context}' if self.context else ''}"
        return Passage(str(number), named, 0, len(self.text), None, self.text)

    def location(self, start: int, end: int) -> dict[str, Any]:
        """Anthropic's citation of the characters `start:end`."""
        cited = {"cited_text": self.text[start:end]}
        if self.kind == "search_result":
            place = {"search_result_index": self.index, "source": self.origin, "title": self.title}
            return {"type": "search_result_location", **cited, **place, **self._blocks(start, end)}
        where = {**cited, "document_index": self.index, "document_title": self.title, "file_id": None}
        if self.kind == "blocks":
            return {"type": "content_block_location", **where, **self._blocks(start, end)}
        if self.kind == "pages":
            first, last = (self._page(at) for at in (start, max(start, end - 1)))
            return {"type": "page_location", **where, "start_page_number": first, "end_page_number": last + 1}
        return {"type": "char_location", **where, "start_char_index": start, "end_char_index": end}

    def _blocks(self, start: int, end: int) -> dict[str, int]:
        first, last = bisect_right(self.ends, start), bisect_right(self.ends, max(start, end - 1))
        return {"start_block_index": first, "end_block_index": min(last, len(self.ends) - 1) + 1}

    def _page(self, at: int) -> int:
        return next((page.number for page in reversed(self.pages) if page.start <= at), 1)


def sources(blocks: Sequence[DocumentBlock | SearchResultBlock], read: Read) -> list[Source]:
    """The documents of a request, in its order. Blocks while a PDF is read.

    Raises InvalidRequest: one is empty, or no PDF. Errors of `read`.
    """
    found: list[Source] = []
    documents = results = 0
    for block in blocks:
        if isinstance(block, SearchResultBlock):
            text, ends = _joined([part.text for part in block.content])
            found.append(Source("search_result", results, block.title, text, ends, origin=block.source))
            results += 1
        else:
            found.append(_document(block, documents, read))
            documents += 1
        if not found[-1].text.strip():
            raise InvalidRequest(f"{found[-1].title or 'A document'} has no text.", param="messages")
    return found


def _document(block: DocumentBlock, index: int, read: Read) -> Source:
    source, context = block.source, block.context or ""
    if isinstance(source, TextSource):
        return Source("text", index, block.title, source.data, context=context)
    if isinstance(source, PdfSource):
        try:
            data = base64.b64decode(source.data, validate=True)
        except (binascii.Error, ValueError):
            raise InvalidRequest("The data of a document is no base64.", param="messages") from None
        parsed = read(data, f"{block.title or 'document'}.pdf")
        return Source("pages", index, block.title, parsed.text, pages=tuple(parsed.pages), context=context)
    parts = [source.content] if isinstance(source.content, str) else [part.text for part in source.content]
    text, ends = _joined(parts)
    return Source("blocks", index, block.title, text, ends, context=context)


def _joined(parts: Sequence[str]) -> tuple[str, tuple[int, ...]]:
    """Blocks as one text, and where each ends; the gap behind one belongs to it."""
    return GAP.join(parts), tuple(accumulate(len(part) + len(GAP) for part in parts))

"""Plain text and Markdown: the stored text is the file's own, decoded and otherwise unchanged but for HTML in Markdown.

Line ends stay as they are (CRLF included). A byte order mark is a mark of the encoding, not text, and is not stored.
"""

from __future__ import annotations

from retrieval.errors import EmptyFile
from retrieval.parsing.document import ParsedDocument, storable
from retrieval.parsing.encoding import decode
from retrieval.parsing.markdown import headings_of, without_tags
from retrieval.types import Page

MARKDOWN = "text/markdown"


def parse_text(data: bytes, name: str, media_type: str) -> ParsedDocument:
    """Errors: EmptyFile, UnsupportedFile."""
    decoded = decode(data, name)
    text = decoded.text
    if not text or text.isspace():
        raise EmptyFile(f"{name} holds nothing but white space; nothing to ingest")
    tags = 0
    if media_type == MARKDOWN:
        text, tags = without_tags(text)
    stored = storable(text)
    headings = headings_of(stored) if media_type == MARKDOWN else []
    parsed = ParsedDocument(stored, [Page(1, 0, len(stored))], media_type, headings=headings)
    parsed.notes.extend(decoded.notes())
    if tags:
        parsed.notes.append(f"{tags} HTML tags or comments in the Markdown were left out")
    if stored != text:
        parsed.notes.append("control characters that cannot be stored became U+FFFD")
    return parsed

"""Plain text and Markdown: the stored text is the file's own, decoded and otherwise unchanged.

Line ends stay as they are (CRLF included). A byte order mark is a mark of the encoding, not text, and is not stored.
"""

from __future__ import annotations

from retrieval.errors import EmptyFile
from retrieval.parsing.document import ParsedDocument, single_page, storable
from retrieval.parsing.encoding import decode


def parse_text(data: bytes, name: str, media_type: str) -> ParsedDocument:
    """Errors: EmptyFile, UnsupportedFile."""
    decoded = decode(data, name)
    text = decoded.text
    if not text or text.isspace():
        raise EmptyFile(f"{name} holds nothing but white space; nothing to ingest")
    stored = storable(text)
    parsed = single_page(stored, media_type)
    parsed.notes.extend(decoded.notes())
    if stored != text:
        parsed.notes.append("control characters that cannot be stored became U+FFFD")
    return parsed

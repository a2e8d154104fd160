"""Plain text and Markdown: the stored text is the file's own, decoded and otherwise unchanged.

Line ends stay as they are (CRLF included). A byte order mark is a mark of the encoding, not text, and is not
stored. Encoding: by the byte order mark; else UTF-8; else the most likely one of the 8-bit and East Asian
encodings (charset-normalizer), said in ``notes``.
"""

from __future__ import annotations

import codecs

from retrieval.errors import EmptyFile, UnsupportedFile
from retrieval.parsing.document import ParsedDocument, single_page, storable
from retrieval.parsing.markdown import without_tags

MARKDOWN = "text/markdown"

_MARKS = [
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
]


def decode(data: bytes, name: str) -> tuple[str, str]:
    """(text, encoding). Error: UnsupportedFile when no encoding makes text of it."""
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            try:
                return data[len(mark) :].decode(encoding), encoding
            except UnicodeDecodeError as error:
                raise UnsupportedFile(
                    f"{name} claims to be {encoding} but is not: {error}; save it as UTF-8"
                ) from error
    try:
        return data.decode("utf-8"), "utf-8"
    except UnicodeDecodeError:
        pass
    from charset_normalizer import from_bytes

    guesses = from_bytes(data[: 1 << 18])
    best = guesses.best()
    likely = [] if best is None else [best.encoding]
    # Western text fits several neighbours of cp1252 as well; the common one goes first among equals.
    if best is not None and any(guess.encoding == "cp1252" and guess.chaos <= best.chaos for guess in guesses):
        likely.insert(0, "cp1252")
    for encoding in [*likely, "cp1252"]:
        try:
            return data.decode(encoding), encoding
        except UnicodeDecodeError:
            continue
    raise UnsupportedFile(f"{name} is neither UTF-8 nor any encoding that could be recognised; save it as UTF-8")


def parse_text(data: bytes, name: str, media_type: str) -> ParsedDocument:
    text, encoding = decode(data, name)
    if not text or text.isspace():
        raise EmptyFile(f"{name} holds nothing but white space; nothing to ingest")
    tags = 0
    if media_type == MARKDOWN:
        text, tags = without_tags(text)
    stored = storable(text)
    parsed = single_page(stored, media_type)
    if tags:
        parsed.notes.append(f"{tags} HTML tags or comments in the Markdown were left out")
    if encoding != "utf-8":
        parsed.notes.append(f"decoded as {encoding}")
    if stored != text:
        parsed.notes.append("control characters that cannot be stored became U+FFFD")
    return parsed

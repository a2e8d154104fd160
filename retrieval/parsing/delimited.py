"""CSV and TSV: the delimiter is told by the rows; every value is what the file says, letter by letter."""

from __future__ import annotations

import csv
import io
import itertools
from collections import Counter
from collections.abc import Iterator

from retrieval.errors import EmptyFile
from retrieval.parsing.builder import TextBuilder
from retrieval.parsing.document import ParsedDocument
from retrieval.parsing.encoding import decode
from retrieval.parsing.table_text import Cell, Row, write_table

_DELIMITERS = ",;\t|"
_SAMPLE_ROWS = 200
_SAMPLE_CHARS = 1 << 18


def parse_delimited(data: bytes, name: str, media_type: str) -> ParsedDocument:
    """Errors: EmptyFile, UnsupportedFile."""
    decoded = decode(data, name)
    builder = TextBuilder()
    builder.notes.extend(decoded.notes())
    delimiter = _delimiter(decoded.text)
    quoting = csv.QUOTE_MINIMAL
    if _has_open_quote(decoded.text, delimiter):
        quoting = csv.QUOTE_NONE
        builder.notes.append("a quotation mark is never closed, so all of them were read as characters of the values")
    write_table(builder, _rows(decoded.text, delimiter, quoting))
    if not builder.length:
        raise EmptyFile(f"{name} holds no values; nothing to ingest")
    return builder.document(media_type)


def _rows(text: str, delimiter: str, quoting: int) -> Iterator[tuple[int, Row]]:
    for number, values in enumerate(_read(text, delimiter, quoting=quoting), 1):
        yield number, {column: Cell(value) for column, value in enumerate(values, 1)}


def _read(text: str, delimiter: str, *, quoting: int = csv.QUOTE_MINIMAL, strict: bool = False) -> Iterator[list[str]]:
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))
    if "\r" in text and "\n" not in text:
        text = text.replace("\r", "\n")
    return csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, quoting=quoting, strict=strict)  # type: ignore[arg-type]


def _delimiter(text: str) -> str:
    """The one by which most rows have the same number of values, and more than one."""

    def regularity(delimiter: str) -> float:
        rows = itertools.islice(_read(text[:_SAMPLE_CHARS], delimiter), _SAMPLE_ROWS)
        widths = Counter(len(row) for row in rows if row)
        width, count = max(widths.items(), key=lambda item: (item[0] > 1, item[1]), default=(0, 0))
        return count / widths.total() if width > 1 else 0.0

    return max(_DELIMITERS, key=regularity)


def _has_open_quote(text: str, delimiter: str) -> bool:
    try:
        for _ in _read(text, delimiter, strict=True):
            pass
    except csv.Error as error:
        return "unexpected end of data" in str(error)
    return False

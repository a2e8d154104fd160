"""ODT: paragraphs, lists, tables and notes from the document's own XML; headers and footers once, after the text."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from io import BytesIO

from retrieval.errors import DamagedFile, EmptyFile
from retrieval.parsing.archives import Element, check_archive, read_xml
from retrieval.parsing.builder import TextBuilder
from retrieval.parsing.document import ParsedDocument
from retrieval.parsing.limits import Limits
from retrieval.parsing.sniff import MEDIA_TYPES
from retrieval.parsing.table_text import Cell, write_table

_OFFICE = "{urn:oasis:names:tc:opendocument:xmlns:office:1.0}"
_TEXT = "{urn:oasis:names:tc:opendocument:xmlns:text:1.0}"
_TABLE = "{urn:oasis:names:tc:opendocument:xmlns:table:1.0}"
_STYLE = "{urn:oasis:names:tc:opendocument:xmlns:style:1.0}"
_LEFT_OUT = {_OFFICE + "annotation", _TEXT + "tracked-changes", _TEXT + "note-citation", _TEXT + "sequence-decls"}
_MOST_SPACES = 100
_MOST_REPEATED = 1000
_LOWEST = 6
"""level of a heading that is told apart"""


def parse_opendocument(data: bytes, name: str, limits: Limits) -> ParsedDocument:
    """Errors: UnreadableFile and its kinds."""
    check_archive(data, name, limits)
    with zipfile.ZipFile(BytesIO(data)) as archive:
        content, styles = read_xml(archive, "content.xml", name), read_xml(archive, "styles.xml", name)
    body = content.find(f"{_OFFICE}body/{_OFFICE}text") if content is not None else None
    if body is None:
        raise DamagedFile(f"{name} has no text part; save it anew")
    builder = TextBuilder()
    _Writer(builder).write(body)
    for margin in ("header", "footer"):
        found = styles.iter(_STYLE + margin) if styles is not None else ()
        for text in dict.fromkeys(" ".join("".join(_text(element)).split()) for element in found):
            if any(ch.isalpha() for ch in text):
                builder.part()
                builder.add(f"{margin.capitalize()}: {text}", (margin,))
    if next(body.iter(_OFFICE + "annotation"), None) is not None:
        builder.notes.append("comments were not read")
    if not builder.length:
        raise EmptyFile(f"{name} has no text; nothing to ingest")
    return builder.document(MEDIA_TYPES["odt"])


class _Writer:
    """Numbers paragraphs and tables as it writes them."""

    def __init__(self, builder: TextBuilder) -> None:
        self._builder = builder
        self._paragraphs = 0
        self._tables = 0

    def write(self, parent: Element, bullet: str = "") -> None:
        for child in parent:
            if child.tag == _TEXT + "h":
                level = child.get(_TEXT + "outline-level", "1")
                self._paragraph(child, "", min(int(level), _LOWEST) if level.isdecimal() else 1)
            elif child.tag == _TEXT + "p":
                self._paragraph(child, bullet)
            elif child.tag == _TABLE + "table":
                self._table(child)
            elif child.tag == _TEXT + "list-item":
                self.write(child, "- ")
            elif child.tag not in _LEFT_OUT:
                self.write(child, bullet)

    def _paragraph(self, element: Element, bullet: str, level: int = 0) -> None:
        text = "".join(_text(element)).strip()
        if text:
            self._paragraphs += 1
            place = (f"paragraph {self._paragraphs}",)
            self._builder.part("\n" if bullet else "\n\n")
            if level:
                self._builder.add_heading(" ".join(text.split()), level, place, "#" * level + " ")
            else:
                self._builder.add(bullet + text, place)

    def _table(self, table: Element) -> None:
        self._tables += 1
        rows = []
        for number, row in enumerate(table.iter(_TABLE + "table-row"), 1):
            cells, column = {}, 1
            for cell in row:
                repeated = cell.get(_TABLE + "number-columns-repeated", "1")
                times = min(int(repeated) if repeated.isdigit() else 1, _MOST_REPEATED)
                text = "".join(_text(cell)).strip()
                cells.update({column + n: Cell(text) for n in range(times)})
                column += times
            rows.append((number, cells))
        self._builder.part()
        write_table(self._builder, rows, (f"table {self._tables}",))


def _text(element: Element) -> Iterator[str]:
    yield element.text or ""
    for child in element:
        if child.tag == _TEXT + "s":
            count = child.get(_TEXT + "c", "1")
            yield " " * min(int(count) if count.isdigit() else 1, _MOST_SPACES)
        elif child.tag == _TEXT + "tab":
            yield "\t"
        elif child.tag == _TEXT + "line-break":
            yield "\n"
        elif child.tag == _TEXT + "note":
            yield f" ({''.join(_text(child)).strip()})"
        elif child.tag not in _LEFT_OUT:
            yield from _text(child)
            if child.tag in (_TEXT + "p", _TEXT + "h"):
                yield "\n"
        yield child.tail or ""

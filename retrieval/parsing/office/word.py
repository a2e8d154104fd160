"""DOCX: paragraphs, tables, text boxes, notes, headers and footers, from the document's own XML.

Deleted text is left out, inserted text is kept. Headers and footers stand once, after the text.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import BytesIO

from retrieval.errors import DamagedFile, EmptyFile
from retrieval.parsing.archives import Element, check_archive, read_xml
from retrieval.parsing.builder import TextBuilder
from retrieval.parsing.document import ParsedDocument
from retrieval.parsing.limits import Limits
from retrieval.parsing.sniff import MEDIA_TYPES
from retrieval.parsing.table_text import Cell, write_table

_W = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
_M = "{http://schemas.openxmlformats.org/officeDocument/2006/math}"
_FALLBACK = "{http://schemas.openxmlformats.org/markup-compatibility/2006}Fallback"
_LEFT_OUT = {_W + "del", _W + "moveFrom", _W + "rPr", _W + "pPr", _W + "instrText", _FALLBACK}
_AS_TEXT = {_W + "tab": "\t", _W + "br": "\n", _W + "cr": "\n", _W + "noBreakHyphen": "-", _W + "softHyphen": ""}
_WRAPPERS = {_W + "sdt", _W + "sdtContent", _W + "ins", _W + "moveTo", _W + "smartTag", _W + "customXml"}
_PART = re.compile(r"word/(header|footer)\d*\.xml")
_UNREAD = ("word/diagrams/", "word/charts/", "word/embeddings/")
_HEADING = re.compile(r"heading\s*([1-6])|(title)", re.I)
_LOWEST = 6
"""level of a heading that is told apart"""


@dataclass
class _Reading:
    """What is met on the way through the text.

    Attributes:
        boxes: content of text boxes that are not written yet.
        headings: style id → level, from 1.
        captions: ids of the styles of captions.
        cited: (kind, id) of footnotes and endnotes in the order of their numbers.
    """

    headings: dict[str, int] = field(default_factory=dict)
    captions: set[str] = field(default_factory=set)
    boxes: list[Element] = field(default_factory=list)
    cited: list[tuple[str, str]] = field(default_factory=list)
    hidden: int = 0
    pictures: int = 0
    paragraphs: int = 0
    tables: int = 0


def parse_word(data: bytes, name: str, limits: Limits) -> ParsedDocument:
    """Errors: UnreadableFile and its kinds."""
    check_archive(data, name, limits)
    builder = TextBuilder()
    with zipfile.ZipFile(BytesIO(data)) as archive:
        document = read_xml(archive, "word/document.xml", name)
        body = document.find(_W + "body") if document is not None else None
        if body is None:
            raise DamagedFile(f"{name} has no text part; save it anew")
        reading = _Reading(*_styles(archive, name))
        _write_blocks(builder, body, reading)
        _write_notes(builder, archive, reading, name)
        _write_margins(builder, archive, reading, name)
        if "word/comments.xml" in archive.namelist():
            builder.notes.append("comments were not read")
        if any(entry.startswith(_UNREAD) for entry in archive.namelist()):
            builder.notes.append("diagrams, charts and embedded files were not read")
    if reading.hidden:
        builder.notes.append(f"hidden text was not read ({reading.hidden} characters)")
    if reading.pictures:
        builder.notes.append(f"pictures were not read ({reading.pictures})")
    if not builder.length:
        raise EmptyFile(f"{name} has no text; nothing to ingest")
    return builder.document(MEDIA_TYPES["docx"])


def _styles(archive: zipfile.ZipFile, name: str) -> tuple[dict[str, int], set[str]]:
    """(headings, captions) of a `_Reading`."""
    captions = {"Caption"}
    levels = {"Title": 1, **{f"Heading{level}": level for level in range(1, 7)}}
    root = read_xml(archive, "word/styles.xml", name)
    for style in root.iter(_W + "style") if root is not None else ():
        named = style.find(_W + "name")
        called = named.get(_W + "val", "") if named is not None else ""
        if called.lower() == "caption":
            captions.add(style.get(_W + "styleId", ""))
        match = _HEADING.fullmatch(called)
        level = int(match[1] or 1) if match else _outline_level(style)
        if level:
            levels[style.get(_W + "styleId", "")] = level
    return levels, captions


def _outline_level(element: Element) -> int:
    """Of a style or a paragraph that says itself which heading it is; 0 for none."""
    outline = element.find(f"{_W}pPr/{_W}outlineLvl")
    said = outline.get(_W + "val", "") if outline is not None else ""
    return int(said) + 1 if said.isdecimal() and int(said) < _LOWEST else 0


def _within(parent: Element, *tags: str) -> Iterator[Element]:
    """Children of these tags in order, through what only wraps them."""
    for child in parent:
        if child.tag in tags:
            yield child
        elif child.tag in _WRAPPERS:
            yield from _within(child, *tags)


def _write_blocks(builder: TextBuilder, parent: Element, reading: _Reading, path: tuple[str, ...] = ()) -> None:
    """path: of all that is written, in place of the number of each paragraph and table."""
    in_list = False
    caption = ""
    for block in _within(parent, _W + "p", _W + "tbl"):
        if block.tag == _W + "tbl":
            reading.tables += 1
            _write_table(builder, block, reading, path or (f"table {reading.tables}",), caption)
            in_list, caption = False, ""
        else:
            text = "".join(_text(block, reading)).strip()
            if text:
                reading.paragraphs += 1
                style = _style(block)
                level = _outline_level(block) or reading.headings.get(style, 0)
                caption = " ".join(text.split()) if style in reading.captions else ""
                listed = block.find(f"{_W}pPr/{_W}numPr") is not None and not level
                builder.part("\n" if listed and in_list else "\n\n")
                place = path or (f"paragraph {reading.paragraphs}",)
                if level:
                    builder.add_heading(" ".join(text.split()), level, place, "#" * level + " ")
                else:
                    builder.add(f"- {text}" if listed else text, place)
                in_list = listed
        while reading.boxes:
            _write_blocks(builder, reading.boxes.pop(0), reading, path or ("text box",))


def _style(block: Element) -> str:
    style = block.find(f"{_W}pPr/{_W}pStyle")
    return str(style.get(_W + "val", "")) if style is not None else ""


def _text(element: Element, reading: _Reading) -> Iterator[str]:
    for child in element:
        tag = child.tag
        if tag == _W + "r" and _is_hidden(child):
            reading.hidden += sum(len(part.text or "") for part in child.iter(_W + "t"))
        elif tag in (_W + "t", _M + "t"):
            yield child.text or ""
        elif tag in _AS_TEXT:
            yield _AS_TEXT[tag]
        elif tag in (_W + "footnoteReference", _W + "endnoteReference"):
            reading.cited.append((tag[len(_W) : -len("Reference")], child.get(_W + "id", "")))
            yield f"[{len(reading.cited)}]"
        elif tag == _W + "txbxContent":
            reading.boxes.append(child)
        elif tag == _W + "tbl":
            yield " ".join("".join(_text(cell, reading)) for cell in child.iter(_W + "tc")) + " "
        elif tag not in _LEFT_OUT:
            reading.pictures += tag.endswith("}blip")
            yield from _text(child, reading)
            if tag == _W + "p":
                yield "\n"


def _is_hidden(run: Element) -> bool:
    vanish = run.find(f"{_W}rPr/{_W}vanish")
    return vanish is not None and vanish.get(_W + "val", "true") not in ("0", "false", "off")


def _write_table(builder: TextBuilder, table: Element, reading: _Reading, path: tuple[str, ...], caption: str) -> None:
    """The value of a cell that is merged downwards counts in each row that it spans."""
    rows = []
    above: dict[int, Cell] = {}
    for number, row in enumerate(_within(table, _W + "tr"), 1):
        cells, column = {}, 1
        for element in _within(row, _W + "tc"):
            merge = element.find(f"{_W}tcPr/{_W}vMerge")
            goes_on = merge is not None and merge.get(_W + "val") != "restart"
            cell = Cell("".join(_text(element, reading)).strip())
            cells[column] = above[column] = above.get(column, cell) if goes_on else cell
            span = element.find(f"{_W}tcPr/{_W}gridSpan")
            column += int(span.get(_W + "val", 1)) if span is not None else 1
        rows.append((number, cells))
    builder.part()
    write_table(builder, rows, path, caption=caption)


def _write_notes(builder: TextBuilder, archive: zipfile.ZipFile, reading: _Reading, name: str) -> None:
    notes = {}
    for kind in ("footnote", "endnote"):
        root = read_xml(archive, f"word/{kind}s.xml", name)
        for found in root.findall(_W + kind) if root is not None else ():
            notes[kind, found.get(_W + "id", "")] = found
    for number, key in enumerate(reading.cited, 1):
        text = "".join(_text(notes[key], reading)).strip() if key in notes else ""
        if text:
            builder.part("\n\n" if number == 1 else "\n")
            builder.add(f"[{number}] {text}", (f"{key[0]} {number}",))


def _write_margins(builder: TextBuilder, archive: zipfile.ZipFile, reading: _Reading, name: str) -> None:
    """Headers and footers, each text once; page numbers alone are no text."""
    written = set()
    for entry in sorted(archive.namelist()):
        match = _PART.fullmatch(entry)
        root = read_xml(archive, entry, name) if match else None
        if match is None or root is None:
            continue
        text = " ".join("".join(_text(root, reading)).split())
        if (match[1], text) not in written and any(ch.isalpha() for ch in text):
            written.add((match[1], text))
            builder.part()
            builder.add(f"{match[1].capitalize()}: {text}", (match[1],))

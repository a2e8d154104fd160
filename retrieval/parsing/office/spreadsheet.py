"""XLSX: every value as the sheet shows it, a page a sheet. Hidden sheets, rows and columns are noted, not stored."""

from __future__ import annotations

import contextlib
import re
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

from openpyxl import load_workbook
from openpyxl.utils import range_boundaries

from retrieval.errors import EmptyFile
from retrieval.parsing.archives import check_archive
from retrieval.parsing.builder import TextBuilder
from retrieval.parsing.document import ParsedDocument
from retrieval.parsing.limits import Limits
from retrieval.parsing.office.number_format import shown
from retrieval.parsing.sniff import MEDIA_TYPES
from retrieval.parsing.table_text import Cell, Row, letters, write_table

_BLOCK = 1 << 20
_LONGEST_TAG = 4096
_MERGED = re.compile(rb'<(?:\w++:)?mergeCell\b(?=[^<>]*+>)[^<>]*?\bref="([A-Z0-9:]+)"')
_HIDDEN_ROW = re.compile(rb'<(?:\w++:)?row\b(?=[^<>]*+>)(?=[^<>]*?\bhidden="(?:1|true)")[^<>]*?\br="(\d+)"')
_HIDDEN_COLUMNS = re.compile(rb'<(?:\w++:)?col\b(?=[^<>]*+>)(?=[^<>]*?\bhidden="(?:1|true)")[^<>]*>')
_BOUND = re.compile(rb'\b(min|max)="(\d+)"')
_UNCOMPUTED = re.compile(
    rb'<(?:\w++:)?c\b(?=[^<>]*+>)(?>[^<>]*?\br="([A-Z]+\d+)")[^<>]*+>\s*+'
    rb"<(?:\w++:)?f\b(?>[^<>]*/>|[^<>]*+>[^<]*+</(?:\w++:)?f>)"
    rb"\s*+(?:<(?:\w++:)?v\s*+/>|<(?:\w++:)?v></(?:\w++:)?v>)?+\s*+</(?:\w++:)?c>"
)
_MOST_MERGED = 100_000
_MOST_COLUMNS = 16_384
_NAMED = 5
"""cells or rows that a note names"""


@dataclass
class _Layout:
    """What a sheet's XML says beside its values.

    Attributes:
        merged: (first column, first row, last column, last row) of each.
        uncomputed: cells with a formula of which the file holds no result.
    """

    merged: list[tuple[int, int, int, int]] = field(default_factory=list)
    hidden_rows: set[int] = field(default_factory=set)
    hidden_columns: set[int] = field(default_factory=set)
    uncomputed: list[str] = field(default_factory=list)


def parse_spreadsheet(data: bytes, name: str, limits: Limits) -> ParsedDocument:
    """Errors: UnreadableFile and its kinds."""
    check_archive(data, name, limits)
    builder = TextBuilder()
    unread = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # openpyxl warns of extensions that hold no values
        workbook = load_workbook(BytesIO(data), read_only=True, data_only=True, keep_links=False)
    sheets = workbook.worksheets
    for sheet in sheets:
        if sheet.sheet_state != "visible":
            builder.notes.append(f"sheet {sheet.title} is hidden and was not read")
            continue
        builder.part()
        builder.begin_page()
        unread += not _read_sheet(builder, sheet, _layout(data, sheet._worksheet_path))
    _note_the_rest(builder, data, workbook)
    if not builder.length:
        raise EmptyFile(f"{name} has no values in its sheets; nothing to ingest")
    return builder.document(MEDIA_TYPES["xlsx"], unread_share=unread / max(len(sheets), 1))


def _read_sheet(builder: TextBuilder, sheet: Any, layout: _Layout) -> bool:
    """Whether the sheet was read to its end."""
    sheet.reset_dimensions()  # some programs write a wrong one
    spanning = {row for first, row, last, end in layout.merged if last > first and row == end}
    before, noted = builder.length, len(builder.notes)
    rows = _merged(_until_damage(_rows(sheet, layout), builder, sheet.title), layout)
    write_table(builder, rows, (sheet.title,), sheet.title, spanning)
    whole = len(builder.notes) == noted
    _note_hidden(builder, sheet.title, layout)
    if builder.length == before and len(builder.notes) == noted:
        builder.notes.append(f"sheet {sheet.title} is empty")
    return whole


def _until_damage(
    rows: Iterator[tuple[int, dict[int, Cell]]], builder: TextBuilder, title: str
) -> Iterator[tuple[int, dict[int, Cell]]]:
    number = 0
    try:
        for number, cells in rows:
            yield number, cells
    except MemoryError:
        raise
    except Exception as error:  # openpyxl raises many kinds of error at damaged sheets
        cause = f"{type(error).__name__}: {str(error)[:100]}"
        builder.notes.append(f"sheet {title} is damaged ({cause}); what follows row {number} was not read")


def _rows(sheet: Any, layout: _Layout) -> Iterator[tuple[int, dict[int, Cell]]]:
    for cells in sheet.iter_rows():
        found = {}
        number = 0
        for cell in cells:
            value = cell.value
            if value is None:
                continue
            number = cell.row
            if cell.column not in layout.hidden_columns:
                found[cell.column] = Cell(shown(value, cell.number_format), isinstance(value, str))
        if found and number not in layout.hidden_rows:
            yield number, found


def _merged(rows: Iterator[tuple[int, dict[int, Cell]]], layout: _Layout) -> Iterator[tuple[int, Row]]:
    """The rows with a merged cell's value in each row that it spans, and in each column where it is one row high."""
    reaching: list[tuple[int, int, Cell]] = []  # (last row, column, cell) of those that reach further down
    starting: dict[int, list[tuple[int, int, int]]] = {}
    for first, top, last, bottom in layout.merged:
        starting.setdefault(top, []).append((first, last, bottom))
    for number, cells in rows:
        reaching = [merged for merged in reaching if merged[0] >= number]
        for _, column, cell in reaching:
            cells.setdefault(column, cell)
        for first, last, bottom in starting.get(number, []):
            if first not in cells:
                continue
            if bottom == number:
                cells.update(dict.fromkeys(range(first, last + 1), cells[first]))
            else:
                reaching.append((bottom, first, cells[first]))
        yield number, cells


def _layout(data: bytes, path: str) -> _Layout:
    layout = _Layout()
    with zipfile.ZipFile(BytesIO(data)) as archive, archive.open(path) as file:
        tail = b""
        # reading the cells will come upon the same damage, and tell it
        with contextlib.suppress(zipfile.BadZipFile, zlib.error, EOFError):
            while block := file.read(_BLOCK):
                _scan(tail + block, len(tail), layout)
                tail = (tail + block)[-_LONGEST_TAG:]
    return layout


def _scan(xml: bytes, seen: int, layout: _Layout) -> None:
    """Note what ends after the first ``seen`` bytes, which were looked through before."""
    for match in _MERGED.finditer(xml):
        if match.end() > seen and len(layout.merged) < _MOST_MERGED:
            first, top, last, bottom = range_boundaries(match[1].decode())
            layout.merged.append((first, top, min(last, _MOST_COLUMNS), bottom))
    layout.hidden_rows.update(int(match[1]) for match in _HIDDEN_ROW.finditer(xml))
    for match in _HIDDEN_COLUMNS.finditer(xml):
        bounds = {key: int(number) for key, number in _BOUND.findall(match[0])}
        if b"min" in bounds and b"max" in bounds:
            layout.hidden_columns.update(range(bounds[b"min"], min(bounds[b"max"], _MOST_COLUMNS) + 1))
    layout.uncomputed += [match[1].decode() for match in _UNCOMPUTED.finditer(xml) if match.end() > seen]


def _note_hidden(builder: TextBuilder, title: str, layout: _Layout) -> None:
    if layout.hidden_rows:
        rows = _named([str(row) for row in sorted(layout.hidden_rows)])
        builder.notes.append(f"sheet {title}: hidden rows were not read ({rows})")
    if layout.hidden_columns:
        columns = _named([letters(column) for column in sorted(layout.hidden_columns)])
        builder.notes.append(f"sheet {title}: hidden columns were not read ({columns})")
    if layout.uncomputed:
        cells = _named(layout.uncomputed)
        builder.notes.append(
            f"sheet {title}: formulas without a stored result were not read ({cells}); "
            "open the file in a spreadsheet program and save it"
        )


def _note_the_rest(builder: TextBuilder, data: bytes, workbook: Any) -> None:
    for chart in workbook.chartsheets:
        builder.notes.append(f"sheet {chart.title} is a chart and was not read")
    with zipfile.ZipFile(BytesIO(data)) as archive:
        names = archive.namelist()
    if any(re.match(r"xl/(?:threadedComments|comments)", name) for name in names):
        builder.notes.append("comments on cells were not read")
    if any(re.match(r"xl/drawings/drawing\d", name) for name in names):
        builder.notes.append("charts, pictures and text boxes of the sheets were not read")


def _named(names: list[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")

"""Tables as files: CSV, XLSX, JSON.

Words of documents and models stand in them, and a spreadsheet takes what begins like a formula for one: such a cell is
marked as text.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

from service.tables.store import Row, TableHead

Format = Literal["csv", "xlsx", "json"]
MEDIA_TYPES: dict[Format, str] = {
    "csv": "text/csv; charset=utf-8",
    "xlsx": "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
    "json": "application/json",
}
_FORMULA = re.compile(r"\s*[=+\-@|%]|[\t\r\n]")
_LONGEST_CELL = 32_767
_NOT_IN_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")


def exported(head: TableHead, rows: Sequence[Row], form: Format) -> bytes:
    """The whole table as a file."""
    if form == "json":
        return json.dumps(table_data(head) | {"rows": [row_data(row) for row in rows]}, ensure_ascii=False).encode()
    lines = _lines(head, rows)
    return _csv(lines) if form == "csv" else _xlsx(lines)


def table_data(head: TableHead) -> dict[str, Any]:
    """A table without its rows, as JSON."""
    return {
        "id": head.id,
        "status": head.status,
        "rows_total": head.rows,
        "rows_done": head.done,
        "created_at": head.created_at.isoformat(),
        "updated_at": head.updated_at.isoformat(),
        **head.spec.model_dump(mode="json"),
    }


def row_data(row: Row) -> dict[str, Any]:
    """A row as JSON."""
    return {
        "row": row.ordinal,
        "document": row.document,
        "name": row.name,
        "version": row.version,
        "cells": row.cells,
    }


def _lines(head: TableHead, rows: Sequence[Row]) -> Iterator[list[Any]]:
    """The line of names, then a line a document: its name, and value, support and source of each question."""
    questions = [column.question for column in head.spec.columns]
    yield ["document", "id", "version", *(name for question in questions for name in (question, "support", "source"))]
    for row in rows:
        cells: Sequence[dict[str, Any] | None] = row.cells or [None] * len(questions)
        yield [row.name, row.document, row.version, *(value for cell in cells for value in _cell(cell))]


def _cell(cell: dict[str, Any] | None) -> list[Any]:
    if cell is None:
        return ["", "", ""]
    sources = [f"{one['place'] or 'characters'} {one['start']}-{one['end']}".strip() for one in cell["citations"]]
    return [cell["value"] if cell["value"] is not None else "", cell["support"], "; ".join(sources)]


def _csv(lines: Iterable[Sequence[Any]]) -> bytes:
    file = io.StringIO(newline="")
    writer = csv.writer(file)
    for line in lines:
        writer.writerow([f"'{one}" if isinstance(one, str) and _FORMULA.match(one) else one for one in line])
    return file.getvalue().encode()


def _xlsx(lines: Iterable[Sequence[Any]]) -> bytes:
    from openpyxl import Workbook
    from openpyxl.cell import WriteOnlyCell

    book = Workbook(write_only=True)
    sheet = book.create_sheet("Table")
    for line in lines:
        cells = []
        for value in line:
            if isinstance(value, str):
                value = _NOT_IN_XML.sub("", value)[:_LONGEST_CELL]
            cell = WriteOnlyCell(sheet, value=value)
            if isinstance(value, str):
                cell.data_type = "s"  # never a formula
            cells.append(cell)
        sheet.append(cells)
    file = io.BytesIO()
    book.save(file)
    return file.getvalue()

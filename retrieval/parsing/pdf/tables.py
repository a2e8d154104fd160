"""Which rows of a page are the rows of a table: cells of few words in columns that agree."""

from __future__ import annotations

import re
from collections.abc import Sequence

from retrieval.parsing.pdf.segments import Rows, Segment

_SOLID = re.compile(r"[^\W\d_]{3}|\d{2}")


def is_table(rows: Rows) -> bool:
    """Whether all of it is one table: cells of few words in columns that agree."""
    wide = [row for row in rows if len(row) > 1]
    return len(wide) >= 2 and len(wide) >= 0.7 * len(rows) and all(map(_like_cells, wide)) and _aligned(wide)


def table_at(rows: Rows, start: int) -> int:
    """Where the table that begins with this row ends; ``start`` where none does."""
    end = start
    while end < len(rows) and _like_cells(rows[end]) and _in_columns(rows[end], rows[start]):
        if end > start and rows[end - 1][0].box.bottom - rows[end][0].box.top > 2 * rows[end][0].height:
            break
        end += 1
    cells = max((len(row) for row in rows[start:end]), default=0)
    return end if end - start >= (2 if cells > 2 else 3) and _named(rows[start]) else start


def _like_cells(row: Sequence[Segment]) -> bool:
    if len(row) < 2 or any(one.typed for one in row):
        return False
    words = [one.words for one in row]
    return sum(words) <= 5 * len(row) and sorted(words)[len(words) // 2] <= 4 and min(words) <= 3


def _named(row: Sequence[Segment]) -> bool:
    """Whether half of the cells have a word or a number to them: parts of a formula have not."""
    return 2 * sum(bool(_SOLID.search(one.text)) for one in row) >= len(row)


def _aligned(rows: Rows) -> bool:
    return all(_in_columns(row, rows[0]) for row in rows[1:])


def _in_columns(row: Sequence[Segment], columns: Sequence[Segment]) -> bool:
    """Whether each cell stands under one cell of a row above, or most of either do."""
    under = sum(any(overlap(one, column) for column in columns) for one in row)
    return under >= min(len(row), len(columns)) - (min(len(row), len(columns)) > 3)


def overlap(one: Segment, two: Segment) -> bool:
    return min(one.box.right, two.box.right) > max(one.box.left, two.box.left) - 0.5 * one.height

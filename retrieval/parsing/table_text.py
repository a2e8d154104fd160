"""The rows of a sheet as text in which each row means something alone: ``Sales | Zone: EUR | Amount: 1,001.00``.

The names of the columns are taken from the first row that looks like a heading; rows before it (titles) are kept as
they are, and blank cells, rows and columns are left out.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from retrieval.parsing.builder import TextBuilder

SEPARATOR = " | "
LONGEST_NAME = 120
"""characters of a column's name that each row repeats; a heading with a longer one is a row as well"""
_LINE_BREAK = re.compile(r"(?<!\s)(?=\s*?[\r\n\v\f\x85\u2028\u2029])\s+")
_NUMBER = re.compile(r"[-+]?(?=[.,' ]*\d)[\d.,' ]*+%?")
_YEAR = re.compile(r"(?:19|20)\d\d")
_DEEPEST = 20
"""rows among which the heading is looked for"""


@dataclass(frozen=True)
class Cell:
    """What a cell shows. ``is_text``: it was typed as words, not as a number, a date or a truth value."""

    text: str
    is_text: bool = True


Row = Mapping[int, Cell]
"""cells by column (from 1); blank ones may be left out"""


def write_table(
    builder: TextBuilder,
    rows: Iterable[tuple[int, Row]],
    path: tuple[str, ...] = (),
    label: str = "",
    spanning: Collection[int] = (),
    caption: str = "",
) -> None:
    """Add the rows of a table; each cell's place is (*path, name of its column, address).

    Args:
        label: a name that each row begins with, as that of a sheet.
        rows: (number in the file, cells), in order.
        spanning: numbers of rows with cells merged across columns, which tells a heading of two rows.
        caption: what stands above the table and names it.
    """
    kept = ((number, {column: cell for column, cell in row.items() if cell.text.strip()}) for number, row in rows)
    filled = [(number, cells) for number, cells in kept if cells]
    first, depth = _heading(filled, spanning)
    names = _names([cells for _, cells in filled[first : first + depth]])
    spans = []
    for at, (number, cells) in enumerate(filled):
        if first <= at < first + depth and all(len(name) <= LONGEST_NAME for name in names.values()):
            continue
        builder.part("\n")
        start = builder.length
        _write_row(builder, label, path, number, cells, names if at >= first + depth else {})
        spans.append((start, builder.length))
    builder.add_table(caption, spans)


def _write_row(
    builder: TextBuilder, label: str, path: tuple[str, ...], number: int, cells: Row, names: Mapping[int, str]
) -> None:
    if label:
        builder.add(label)
    for at, (column, cell) in enumerate(sorted(cells.items())):
        name = names.get(column, "")[:LONGEST_NAME]
        if at or label:
            builder.add(SEPARATOR)
        text = one_line(cell.text)
        named = [name] if name else []
        builder.add(": ".join([*named, text]), (*path, *named, f"{letters(column)}{number}"))


def one_line(text: str) -> str:
    return _LINE_BREAK.sub(" ", text.strip())


def letters(column: int) -> str:
    """A for 1, AA for 27."""
    said = ""
    while column:
        column, rest = divmod(column - 1, 26)
        said = chr(65 + rest) + said
    return said


def _heading(rows: Sequence[tuple[int, Row]], spanning: Collection[int]) -> tuple[int, int]:
    """(index of the first row of the heading, how many rows it has); (0, 0) for a sheet without one."""
    widest = max((len(cells) for _, cells in rows), default=0)
    for index, (_, cells) in enumerate(rows[:_DEEPEST]):
        if len(cells) < 2 and widest > 1:
            continue  # a title
        if not _is_heading(cells) or len(rows) <= index + 1:
            return 0, 0
        depth = 1
        while (
            rows[index + depth - 1][0] in spanning
            and len(rows) > index + depth + 1
            and _is_heading(rows[index + depth][1])
        ):
            depth += 1
        return index, depth
    return 0, 0


def _is_heading(cells: Row) -> bool:
    """Words, or years beside words; a word with a colon is the label of the value beside it."""
    if any(cell.text.rstrip().endswith(":") for cell in cells.values()):
        return False
    words = [cell for cell in cells.values() if cell.is_text and not _is_number(cell.text)]
    return bool(words) and all(
        (cell.is_text and not _is_number(cell.text)) or _YEAR.fullmatch(cell.text) for cell in cells.values()
    )


def _is_number(text: str) -> bool:
    return bool(_NUMBER.fullmatch(text.strip()))


def _names(heading: Sequence[Row]) -> dict[int, str]:
    """Name of each column, the rows of a heading one above the other."""
    columns = {column for row in heading for column in row}
    names = {}
    for column in columns:
        parts = [one_line(row[column].text) for row in heading if column in row]
        names[column] = " ".join(dict.fromkeys(parts))
    return names

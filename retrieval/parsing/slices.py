"""Long lists as JSON in slices.

The interpreter does nothing else while it reads or writes one JSON text: 600,000 headings at once are a second in which
a service answers nobody. What it only hands on it does not read at all.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import Any, TypeVar, overload

Row = TypeVar("Row")

SLICE = 10_000


class Unread(Sequence[Row]):
    """Rows as their JSON texts, which are read when a row is first asked for."""

    def __init__(self, texts: Sequence[str], make: Callable[..., Row]) -> None:
        """make: a row of its columns."""
        self.texts = list(texts)
        self._make = make

    @overload
    def __getitem__(self, at: int) -> Row: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[Row]: ...
    def __getitem__(self, at: int | slice) -> Row | Sequence[Row]:
        return self._rows[at]

    def __len__(self) -> int:
        return len(self._rows)

    @cached_property
    def _rows(self) -> list[Row]:
        return [self._make(*row) for row in joined(self.texts)]


def sliced(rows: Sequence[Any]) -> list[str]:
    """JSON texts of so many rows each."""
    if isinstance(rows, Unread):
        return rows.texts
    return [json.dumps(rows[at : at + SLICE], separators=(",", ":")) for at in range(0, len(rows), SLICE)]


def joined(texts: Iterable[str]) -> list[Any]:
    """The rows of such texts."""
    return [row for text in texts for row in json.loads(text)]

"""How commands talk: results on stdout, everything else on stderr."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.table import Table

LINE_S = 5.0
"""between two lines of progress where there is no terminal"""
_ENDLESS = 1_000_000
"""columns of an output that is no terminal"""

console = Console(stderr=True, highlight=False)
"""For people: progress, warnings, errors."""


def emit_json(value: Any, line: bool = False) -> None:
    """One JSON object on stdout, spread over lines at a terminal unless it must be one."""
    json.dump(value, sys.stdout, ensure_ascii=False, indent=2 if sys.stdout.isatty() and not line else None)
    sys.stdout.write("\n")
    sys.stdout.flush()


def emit_text(text: str) -> None:
    """Text on stdout exactly as it is: no markup, no line-ending translation, no newline added."""
    sys.stdout.flush()
    buffer = getattr(sys.stdout, "buffer", None)
    if buffer is None:
        sys.stdout.write(text)
    else:
        buffer.write(text.encode("utf-8"))
        buffer.flush()


def emit_table(columns: list[str], rows: list[list[Any]]) -> None:
    """A plain table on stdout: wrapped to a terminal, a line a row elsewhere, never cut."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*("" if cell is None else str(cell) for cell in row))
    terminal = sys.stdout.isatty()
    Console(highlight=False, markup=False, width=None if terminal else _ENDLESS).print(table)


def error_line(message: str) -> None:
    """One clear sentence on stderr."""
    console.print(f"folio: {message}", style="red", markup=False, soft_wrap=True)


def note(message: str) -> None:
    """Something worth knowing, on stderr."""
    console.print(message, style="dim", markup=False, soft_wrap=True)


@contextmanager
def working(message: str) -> Iterator[None]:
    """A spinner on stderr while something slow happens; where stderr is no terminal, a line once it proves slow."""
    if console.is_terminal:
        with console.status(message):
            yield
        return
    late = threading.Timer(LINE_S, note, [message])
    late.start()
    try:
        yield
    finally:
        late.cancel()

"""Progress of a run on stderr: rows done, running score, time left."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import TextIO

from eval.harness.store import Cell

EVERY_S = 10.0


class TextProgress:
    """One line that rewrites itself on a terminal; elsewhere a line every ten seconds and at the end."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr

    def begin(self, cell: Cell, total: int | None, scores: Sequence[float]) -> TextLine:
        """A cell begins; `scores` are those of rows that an earlier run left."""
        return TextLine(self._stream, cell, total, scores)


class TextLine:
    """The line of one cell."""

    def __init__(self, stream: TextIO, cell: Cell, total: int | None, scores: Sequence[float]) -> None:
        self._stream = stream
        self._live = stream.isatty()
        self._cell, self._total, self._before = cell, total, len(scores)
        self._scores = list(scores)
        self._began = self._shown = time.monotonic()

    def row(self, score: float) -> None:
        """One more row, with its score in [0, 1]."""
        self._scores.append(score)
        if self._live or time.monotonic() - self._shown >= EVERY_S:
            self._show(last=False)

    def end(self) -> None:
        """The cell is complete."""
        self._show(last=True)

    def line(self) -> str:
        """What is shown now."""
        done = len(self._scores)
        score = f"{100 * sum(self._scores) / done:.2f}" if done else "–"
        of = f"{done}/{self._total}" if self._total else str(done)
        return f"{self._cell.title}: {of}, score {score}{self._time_left()}"

    def _time_left(self) -> str:
        new, elapsed = len(self._scores) - self._before, time.monotonic() - self._began
        if not new:
            return ""
        if not self._total or len(self._scores) >= self._total:
            return f", {elapsed:.0f} s"
        return f", {elapsed / new * (self._total - len(self._scores)):.0f} s left"

    def _show(self, *, last: bool) -> None:
        text = f"\r{self.line():<79}" if self._live else self.line()
        self._stream.write(text + ("\n" if last or not self._live else ""))
        self._stream.flush()
        self._shown = time.monotonic()

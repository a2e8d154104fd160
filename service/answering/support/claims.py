"""An answer cut into its claims: sentences, items of lists, cells of tables.

Headings, code and rules of Markdown claim nothing. What stands around a claim and belongs to what it says goes with it
as its context: the line that announces a list to each item of it, the names of row and column to a cell.

Of a text that is still being written only the last claim can change: it is marked as not whole.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from retrieval.parsing.sentences import sentences

Kind = Literal["sentence", "item", "cell"]

MARKERS = re.compile(r"(?<!\s)\s*+\[D{0,9}\d{1,4}(?:\s*[,–-]\s*D{0,9}\d{1,4})*\](?=[\s.,;:!?]|$)")
"""By what models name passages, and documents other works. They claim nothing, and cite nothing."""
_FENCE = re.compile(r"[ \t]*(```+|~~~+)")
_HEADING = re.compile(r"[ \t]*(?:#{1,6}[ \t]|\*\*[^*\n]+\*\*:?[ \t]*$|__[^_\n]+__:?[ \t]*$)")
_RULE = re.compile(r"[ \t]*(?:[-*_=][ \t]*){3,}$")
_ITEM = re.compile(r"[ \t]*(?:[-*+•‣–]|\(?(?:\d{1,3}|[a-zA-Z])[.)])[ \t]+")
_ROW = re.compile(r"[ \t]*\|.*\|[ \t]*$")
_COLUMNS = re.compile(r"[ \t]*+\|?[ \t]*+:?-++:?[ \t]*+(?:\|[ \t]*+:?-++:?[ \t]*+)*+\|?[ \t]*+$")
_CELL = re.compile(r"[^|]+")
_ENDED = re.compile(r"[.!?…:。！？；][\"'”’»)\]*_」』]*(?:[ \t]*\[\d[\d, ]*\])*\s*$")


@dataclass(frozen=True, slots=True)
class Claim:
    """One claim of an answer.

    Attributes:
        start, end: character offsets into the answer; ``text`` is exactly that slice.
        context: other words of the answer that the claim says as well: the line that announces a list, the names
            of a cell's row and column.
        whole: False for the last claim of a text that is not finished, and for one before it that may announce it.
    """

    start: int
    end: int
    text: str
    kind: Kind
    context: str = ""
    whole: bool = True


@dataclass(frozen=True, slots=True)
class _Line:
    start: int
    end: int
    text: str


def claims(text: str, finished: bool = True) -> list[Claim]:
    """The claims of an answer in order.

    Args:
        finished: nothing will follow; else the last claim is not whole, for its end may be missing.
    """
    found = list(_Cutter(text).claims())
    if finished:
        return found
    announces = len(found) > 1 and _announces(found[-2].text)  # a list, maybe, once its first line is whole
    certain = max(0, len(found) - 1 - announces)
    return [*found[:certain], *(replace(claim, whole=False) for claim in found[certain:])]


def _announces(text: str) -> bool:
    return text.rstrip("*_ ").endswith((":", "："))


class _Cutter:
    """Goes through the lines of one answer."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._lines = [_Line(found.start(), found.end(), found[0]) for found in re.finditer(r"[^\n]+|\n(?=\n)", text)]
        self._lead = ""

    def claims(self) -> Iterator[Claim]:
        at = 0
        while at < len(self._lines):
            line = self._lines[at].text
            if fence := _FENCE.match(line):
                at = self._after_code(at + 1, fence[1])
            elif not line.strip():
                at += 1
            elif _HEADING.match(line) or _RULE.match(line):
                self._lead = ""
                at += 1
            elif self._is_table(at):
                rows = self._run(at, _ROW)
                yield from self._cells(self._lines[at:rows])
                at = rows
            elif item := _ITEM.match(line):
                last = self._joined(at)
                start = self._lines[at].start + item.end()
                yield from self._sentences(start, self._lines[last].end, "item", self._lead)
                at = last + 1
            else:
                last = self._joined(at)
                yield from self._prose(self._lines[at].start, self._lines[last].end, last + 1)
                at = last + 1

    def _after_code(self, at: int, fence: str) -> int:
        while at < len(self._lines) and not self._lines[at].text.strip().startswith(fence):
            at += 1
        return at + 1

    def _is_table(self, at: int) -> bool:
        below = self._lines[at + 1].text if at + 1 < len(self._lines) else ""
        return bool(_ROW.match(self._lines[at].text) and "|" in below and _COLUMNS.match(below))

    def _run(self, at: int, pattern: re.Pattern[str]) -> int:
        while at < len(self._lines) and pattern.match(self._lines[at].text):
            at += 1
        return at

    def _joined(self, at: int) -> int:
        """The last line of the sentence that runs on from this one: the next begins small, and this has no end."""
        while at + 1 < len(self._lines):
            line, below = self._lines[at].text, self._lines[at + 1].text.lstrip()
            if _ENDED.search(line) or not below[:1].islower() or _ITEM.match(below):
                break
            at += 1
        return at

    def _prose(self, start: int, end: int, below: int) -> Iterator[Claim]:
        """Sentences; the last one only announces what follows where it ends in a colon and a list or table is next."""
        found = list(self._sentences(start, end, "sentence", ""))
        self._lead = ""
        if found and _announces(found[-1].text) and self._lists(below):
            self._lead = found.pop().text
        yield from found

    def _lists(self, at: int) -> bool:
        while at < len(self._lines) and not self._lines[at].text.strip():
            at += 1
        return at < len(self._lines) and bool(_ITEM.match(self._lines[at].text) or self._is_table(at))

    def _cells(self, rows: list[_Line]) -> Iterator[Claim]:
        """Every cell but those of the header and, in a table of several columns, of the first column."""
        names = [cell[0].strip() for cell in _CELL.finditer(rows[0].text.strip().strip("|"))]
        for row in rows[2:]:
            cells = [(row.start + cell.start(), cell[0]) for cell in _CELL.finditer(row.text)]
            cells = [(start, cell) for start, cell in cells if cell.strip()]
            first = cells[0][1].strip() if cells else ""
            for column, (start, cell) in enumerate(cells):
                if column == 0 and len(cells) > 1:
                    continue
                lead = len(cell) - len(cell.lstrip())
                name = names[column] if column < len(names) else ""
                context = " ".join(part for part in (first if column else "", name) if part)
                text = cell.strip()
                yield Claim(start + lead, start + lead + len(text), text, "cell", context)

    def _sentences(self, start: int, end: int, kind: Kind, context: str) -> Iterator[Claim]:
        for first, last in sentences(self._text, start, end):
            text = self._text[first:last]
            if any(character.isalnum() for character in MARKERS.sub("", text)):
                yield Claim(first, last, text, kind, context)

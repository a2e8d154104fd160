"""The pieces that a page of a PDF is read as: boxes, segments of lines, rows of segments, blocks of rows."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

BREAK = "\ufffe"
"""a hyphen at the end of a line, as PDFium marks it; whether it belongs to the word is seen later"""

CAPTION = re.compile(r"(?:Tab(?:le|\.|elle|leau|la)|Fig(?:ure|\.|ura)|Abb(?:ildung|\.))\s*[\dIVX]+", re.I)
_ENDED = re.compile(r"""[.!?:;。！？]["'”’»)\]\d]*$""")


class Box(NamedTuple):
    """In points of the page as it is displayed; where its origin lies is left open."""

    left: float
    bottom: float
    right: float
    top: float


@dataclass(slots=True)
class Segment:
    """Characters ``start:end`` of PDFium's text that stand on one line and in one column."""

    start: int
    end: int
    box: Box
    text: str
    hyphen: bool = False
    value: int = -1
    """which of the page's values it is (what is typed into its form, or recognised in its picture); -1: printed text"""
    recognised: bool = False
    sideways: bool = False
    """its letters lie on their sides"""
    height: float = field(init=False)

    def __post_init__(self) -> None:
        self.height = self.box.top - self.box.bottom

    @property
    def typed(self) -> bool:
        """Whether somebody filled it into a field, which may be much higher than a line."""
        return self.value >= 0 and not self.recognised

    @property
    def words(self) -> int:
        return len(self.text.split())


Rows = list[list[Segment]]
"""segments of one line each; several are the cells of a table, or parts of the line"""


@dataclass
class Block:
    """Lines that belong together, each of one segment, or of several where it is the row of a table."""

    kind: str
    """``prose``, ``heading``, ``table`` or ``note``"""
    rows: Rows = field(default_factory=list)


def said(row: Sequence[Segment]) -> str:
    return row[0].text if len(row) == 1 else " ".join(one.text for one in row)


def ends_sentence(row: Sequence[Segment]) -> bool:
    return bool(_ENDED.search(row[-1].text[-9:]))


def median(values: Sequence[float]) -> float:
    return sorted(values)[len(values) // 2] if values else 0.0

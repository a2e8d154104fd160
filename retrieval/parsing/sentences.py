"""Sentence and paragraph spans by rule. Every span is exact: ``text[start:end]`` is the sentence, trimmed."""

from __future__ import annotations

import re
from collections.abc import Iterator

Span = tuple[int, int]

_PARAGRAPH_BREAK = re.compile(r"(?:\r\n|\n|\r(?!\n))[ \t]*(?:\r\n|\n|\r(?!\n))\s*")
# A full stop, with closing quotes or brackets and marks of reference, then white space, then something that can start a
# sentence; or a full stop of the scripts that put no space after it; or a line that begins with a mark of a list.
_SENTENCE_BREAK = re.compile(
    r"""[.!?…]["'”’»)\]*_]*(?:[ \t]*\[\d[\d, ]*\])*(?P<gap>\s+)(?=["'“‘«(\[*_¿¡—–-]*[^\Wa-z_])"""
    r"""|[。！？][」』”’）]*|(?:\r\n|[\r\n])[ \t]*(?=(?:[-*•]|(?P<number>\d{1,3}[.)]))[ \t])"""
)
_NUMBER_OF_ITEM = re.compile(r"\d{1,3}[.)]")
_ABBREVIATION = re.compile(
    r"(?:\b(?:Mr|Mrs|Ms|Dr|Prof|Rev|Hon|St|Sr|Jr|Mt|Capt|Col|Gen|Lt|Sgt|Gov|Sen|Rep|Messrs|Mme|Mlle|vs|cf|viz|etc|al|"
    r"No|Nos|Vol|Fig|Figs|Eq|Eqs|Sec|Ch|pp?|ed|eds|e\.g|i\.e|Inc|Ltd|Co|Corp|Jan|Feb|Mar|Apr|Jun|Jul|Aug|Sept?|Oct|Nov|"
    r"Dec|a\.m|p\.m|U\.S|U\.K)|(?<![^\s(“\"'])(?:[A-Z]\.)*[A-Z])\.$"
)


_ROW = re.compile(r"^.*\S \| \S.*$", re.MULTILINE)


def units(text: str) -> Iterator[Span]:
    """Sentences, and lines that are rows of a table: a stop within a cell ends no sentence."""
    at = 0
    for row in _ROW.finditer(text):
        yield from sentences(text, at, row.start())
        yield row.span()
        at = row.end()
    yield from sentences(text, at)


def paragraphs(text: str) -> Iterator[Span]:
    """Spans between blank lines, trimmed, in order; empty ones are left out."""
    start = 0
    for gap in _PARAGRAPH_BREAK.finditer(text):
        yield from _trimmed(text, start, gap.start())
        start = gap.end()
    yield from _trimmed(text, start, len(text))


def sentences(text: str, start: int = 0, end: int | None = None) -> Iterator[Span]:
    """Sentences of ``text[start:end]``, trimmed, in order; no sentence crosses a paragraph's end."""
    end = len(text) if end is None else end
    for first, last in paragraphs(text[start:end]):
        yield from _sentences_of_paragraph(text, start + first, start + last)


def _sentences_of_paragraph(text: str, start: int, end: int) -> Iterator[Span]:
    for stop in _SENTENCE_BREAK.finditer(text, start, end):
        if stop["gap"] and _ends_a_word_alone(text, start, stop.start()):
            continue
        if stop["number"] and not _may_list(text, start, stop.start()):
            continue
        yield from _trimmed(text, start, stop.end())
        start = stop.end()
    yield from _trimmed(text, start, end)


def _ends_a_word_alone(text: str, start: int, stop: int) -> bool:
    """Whether the full stop at ``stop`` ends an abbreviation, or the number of the list's item that starts here."""
    if _ABBREVIATION.search(text, max(start, stop - 12), stop + 1):
        return True
    return bool(_NUMBER_OF_ITEM.fullmatch(text, start, stop + 1))


def _may_list(text: str, start: int, line_end: int) -> bool:
    """Whether a number on the next line can be an item's: this is an item as well, or announces some."""
    return text[line_end - 1] in ":;," or bool(_NUMBER_OF_ITEM.match(text, start, line_end))


def _trimmed(text: str, start: int, end: int) -> Iterator[Span]:
    while start < end and text[start].isspace():
        start += 1
    while end > start and text[end - 1].isspace():
        end -= 1
    if start < end:
        yield start, end

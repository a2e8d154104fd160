"""Where a quotation stands in a text: its exact span, or nothing.

A quotation may differ from the text in white space, hyphenation over lines, ligatures and other compatibility forms,
the shape of quotation marks and dashes, emphasis marks, and case; in nothing else. Both are brought to one canonical
form, of which every character knows the span it came from. A span starts and ends at a word's edge, so that
"happy man" is not found in "unhappy man".
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from functools import lru_cache

import numpy as np

Span = tuple[int, int]

_LETTER = r"[^\W\d_]"
_PATTERN = re.compile(
    rf"""
    (?P<plain>[A-Za-z0-9]+)
    | (?P<hyphen>(?<={_LETTER})(?:[-\u2010\u2011]|\u00ad+)\s*(?={_LETTER}))
    | (?P<dash>\s*(?:-{{2,}}|[\u2012-\u2015]+)\s*|\s+[-\u2010\u2011\u2212]\s+)
    | (?P<space>\s+)
    | (?P<nothing>[\u00ad\u200b-\u200f\u2060\ufeff_*]+)
    | (?P<double>["\u201c\u201d\u201e\u201f\u2033\u00ab\u00bb]|''|``)
    | (?P<single>['\u2018\u2019\u201a\u201b\u2032`])
    | (?P<minus>[-\u2010\u2011\u2212])
    | (?P<other>.[\u0300-\u036f]*)
    """,
    re.X | re.S,
)
_REPLACED = {"hyphen": "", "dash": "\u2013", "space": " ", "nothing": "", "double": '"', "single": "'", "minus": "-"}
# a letter, and perhaps a hyphen at the end of the line
_WORD_GOES_BACK = re.compile(rf"(?:\w|{_LETTER}(?:[-\u2010]\s*[\r\n]\s*|\u00ad\s*))(?<!_)$")
_WORD_GOES_ON = re.compile(rf"(?!_)(?:\w|(?:[-\u2010]\s*[\r\n]\s*|\u00ad\s*){_LETTER})")
_WRAPPING = " \t\r\n\"'“”‘’«»…"
_ENDING = _WRAPPING + ".,;:"


class AlignableText:
    """A text prepared once for many quotations."""

    def __init__(self, text: str) -> None:
        self.text = text
        self._canonical: str | None = None
        self._starts = self._ends = np.empty(0, dtype=np.int64)

    def align(self, quote: str, near: int | None = None) -> Span | None:
        """(start, end) with ``text[start:end]`` saying what ``quote`` says, or None.

        Of several places the one nearest to the offset ``near`` is taken, else the first. An exact occurrence goes
        before a canonical one; last, quotation marks around the quote and a full stop at its end are not held
        against it.
        """
        if not quote.strip(_ENDING).strip():
            return None
        for spans in (
            self._exact(quote.strip()),
            self._canonical_spans(quote),
            self._canonical_spans(quote.strip(_WRAPPING)),
            self._canonical_spans(quote.strip(_ENDING)),
        ):
            found = list(spans)
            if found:
                return found[0] if near is None else min(found, key=lambda span: abs(span[0] - near))
        return None

    def _exact(self, quote: str) -> Iterator[Span]:
        at = self.text.find(quote)
        while at >= 0:
            if self._at_word_edges(at, at + len(quote)):
                yield at, at + len(quote)
            at = self.text.find(quote, at + 1)

    def _canonical_spans(self, quote: str) -> Iterator[Span]:
        wanted = canonical(quote)[0].strip(" ")
        if not wanted:
            return
        if self._canonical is None:
            self._canonical, self._starts, self._ends = canonical(self.text)
        at = self._canonical.find(wanted)
        while at >= 0:
            span = int(self._starts[at]), int(self._ends[at + len(wanted) - 1])
            if self._at_word_edges(*span):
                yield span
            at = self._canonical.find(wanted, at + 1)

    def _at_word_edges(self, start: int, end: int) -> bool:
        text = self.text
        cuts_first = text[start].isalnum() and _WORD_GOES_BACK.search(text, max(0, start - 8), start)
        cuts_last = text[end - 1].isalnum() and _WORD_GOES_ON.match(text, end)
        return not (cuts_first or cuts_last)


def align(quote: str, text: str, near: int | None = None) -> Span | None:
    """See ``AlignableText.align``; keep one of those to align many quotations to the same text."""
    return AlignableText(text).align(quote, near)


def canonical(text: str) -> tuple[str, np.ndarray, np.ndarray]:
    """(canonical form, int64[n] start, int64[n] end of each of its n characters in ``text``)."""
    parts: list[str] = []
    starts: list[int] = []
    ends: list[int] = []
    for found in _PATTERN.finditer(text):
        kind = found.lastgroup
        start, end = found.span()
        if kind == "plain":
            parts.append(found[0].lower())
            starts.extend(range(start, end))
            ends.extend(range(start + 1, end + 1))
            continue
        replaced = _fold(found[0]) if kind == "other" else _REPLACED[str(kind)]
        parts.append(replaced)
        starts.extend([start] * len(replaced))
        ends.extend([end] * len(replaced))
    return "".join(parts), np.array(starts, dtype=np.int64), np.array(ends, dtype=np.int64)


@lru_cache(maxsize=4096)
def _fold(character: str) -> str:
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", character).casefold())

"""What every parser returns."""

from __future__ import annotations

import bisect
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from retrieval.types import Page, Place

PageProgress = Callable[[int, int], None]
"""called with (pages done, pages in all)"""


PARTIAL_ABOVE = 0.1
"""share of the pages (or parts) not read above which a document counts as partially read"""


MOST_NOTES, NOTE_CHARS = 100, 300
"""of one document, which a listing shows a hundred of"""


def shown_notes(notes: Sequence[str]) -> list[str]:
    """As many as are kept, none longer than a sentence should be: names of parts in them are the file's own."""
    kept = [note if len(note) <= NOTE_CHARS else f"{note[: NOTE_CHARS - 1]}…" for note in notes[:MOST_NOTES]]
    more = len(notes) - len(kept)
    return [*kept, f"{more} more notes are left out"] if more else kept


@dataclass(frozen=True)
class Table:
    """Rows of the text that belong together. A chunk cuts none of them.

    Attributes:
        header: words that make a row mean something alone (caption, names of columns); "" where each row has them.
        rows: (start, end) of each row in the text, in order, the header's own row excepted.
    """

    header: str
    rows: list[tuple[int, int]]


class Heading(NamedTuple):
    """Characters ``start:end`` of the text name what follows, down to the next heading of this level or a higher one.

    ``level`` is 1 for the highest.
    """

    start: int
    end: int
    level: int


@dataclass(frozen=True)
class ParsedDocument:
    """A document's text, where its pages and smaller places lie in it, and what is not in it.

    Attributes:
        pages: cover the text in order, without overlap.
        notes: sentences about what was not read, or read with doubt, page by page or part by part.
        places: in order of their starts, without overlap; they need not cover the text.
        tables: in order, without overlap; for chunking alone.
        headings: likewise.
        unread_share: pages (or parts) that were not read ÷ all of them, from 0 to 1.
    """

    text: str
    pages: list[Page]
    media_type: str
    notes: list[str] = field(default_factory=list)
    places: list[Place] = field(default_factory=list)
    tables: Sequence[Table] = field(default_factory=list)
    headings: Sequence[Heading] = field(default_factory=list, kw_only=True)
    unread_share: float = 0.0

    @property
    def partial(self) -> bool:
        return self.unread_share > PARTIAL_ABOVE


def page_at(pages: Sequence[Page], offset: int) -> int:
    """The number of the page on which the character at ``offset`` lies (a separator belongs to the page before)."""
    index = bisect.bisect_right(pages, offset, key=lambda page: page.start) - 1
    return pages[max(index, 0)].number


# NUL is refused by PostgreSQL, lone surrogates by every encoder; the other controls only confuse terminals.
_UNSTORABLE = re.compile("[\x00-\x08\x0b\x0e-\x1f\ud800-\udfff\ufffe\uffff]")


def storable(text: str) -> str:
    """``text`` with what cannot be stored or shown replaced by U+FFFD, one for one, so that offsets stay."""
    return _UNSTORABLE.sub("\ufffd", text)

"""What every parser returns."""

from __future__ import annotations

import bisect
import re
from collections.abc import Callable
from dataclasses import dataclass, field

from retrieval.types import Page

PageProgress = Callable[[int, int], None]
"""called with (pages done, pages in all)"""


@dataclass(frozen=True)
class ParsedDocument:
    """A document's text and where its pages lie in it. ``pages`` covers the text in order, without overlap."""

    text: str
    pages: list[Page]
    media_type: str
    notes: list[str] = field(default_factory=list)


def single_page(text: str, media_type: str) -> ParsedDocument:
    return ParsedDocument(text, [Page(1, 0, len(text))], media_type)


def join_pages(texts: list[str], media_type: str, separator: str = "\n\n") -> ParsedDocument:
    """The pages' texts with ``separator`` between; each page's span ends before its separator."""
    pages: list[Page] = []
    at = 0
    for number, text in enumerate(texts, 1):
        pages.append(Page(number, at, at + len(text)))
        at += len(text) + len(separator)
    return ParsedDocument(separator.join(texts), pages, media_type)


def page_at(pages: list[Page], offset: int) -> int:
    """The number of the page on which the character at ``offset`` lies (a separator belongs to the page before)."""
    index = bisect.bisect_right([page.start for page in pages], offset) - 1
    return pages[max(index, 0)].number


# NUL is refused by PostgreSQL, lone surrogates by every encoder; the other controls only confuse terminals.
_UNSTORABLE = re.compile("[\x00-\x08\x0b\x0e-\x1f\ud800-\udfff\ufffe\uffff]")


def storable(text: str) -> str:
    """``text`` with what cannot be stored or shown replaced by U+FFFD, one for one, so that offsets stay."""
    return _UNSTORABLE.sub("\ufffd", text)

"""A cited span beside the store: whether its words still stand there."""

from __future__ import annotations

from dataclasses import dataclass

from service.answering.passages import Span


@dataclass(frozen=True, slots=True)
class Citation:
    """A span that carries a claim, after its check against the store.

    `verified` is True only if the stored characters `start:end` of the document equal `cited_text`.
    """

    span: Span
    page: int | None
    verified: bool
    place: str = ""
    """where in the file it stands, for people; "" for a file without places"""
    boxes: tuple[dict[str, float], ...] = ()
    """where it is printed, for a PDF: see `retrieval.parsing.pdf.boxes.Box`"""


def check(span: Span, stored: str | None, page: int | None) -> Citation:
    """Compare a span with the stored slice `start:end` (None: no such document any more)."""
    return Citation(span, page, stored is not None and span.end > span.start and stored == span.cited_text)

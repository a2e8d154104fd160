"""A passage of stored text given to the model, and a span of stored text that an answer cites."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Passage:
    """A slice of one stored document, as evidence.

    Attributes:
        document: the document's id.
        name: its name, for people.
        start, end: character offsets into the stored text; `text` is exactly that slice.
        page: 1-based page of `start`, or None for documents without pages.
    """

    document: str
    name: str
    start: int
    end: int
    page: int | None
    text: str


@dataclass(frozen=True, slots=True)
class Span:
    """What an answer cites: the characters `start:end` of the stored text of `document`.

    Attributes:
        cited_text: what the answer claims stands there. A layout proposes a span; whether the stored slice
            equals `cited_text` is checked afterwards against the store.
        quoted: the answer repeats the cited words; False when it only refers to their passage.
        answer_start, answer_end: the citing characters of the shown answer: a quotation or a ``[2]``.
        label: the passage's number as the answer writes it (1-based place in `Prompt.passages`).
    """

    document: str
    start: int
    end: int
    page: int | None
    cited_text: str
    quoted: bool = True
    answer_start: int = 0
    answer_end: int = 0
    label: int = 0


def canonical(passages: Iterable[Passage]) -> list[Passage]:
    """Passages by document and offset, overlapping or touching ones joined.

    The order does not depend on the question, so prompts over the same evidence share a prefix, and with it
    the KV pages of that prefix.
    """
    joined: list[Passage] = []
    for passage in sorted(passages, key=lambda p: (p.document, p.start, p.end)):
        last = joined[-1] if joined else None
        if last is None or last.document != passage.document or passage.start > last.end:
            joined.append(passage)
        elif passage.end > last.end:
            text = last.text + passage.text[last.end - passage.start :]
            joined[-1] = Passage(last.document, last.name, last.start, passage.end, last.page, text)
    return joined

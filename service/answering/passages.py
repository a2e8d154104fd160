"""A passage of stored text given to the model, and a span of stored text that an answer cites."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from retrieval.types import Hit


@dataclass(frozen=True, slots=True)
class Passage:
    """A slice of one stored document, as evidence.

    Attributes:
        document: the document's id.
        name: its name, for people.
        start, end: character offsets into the stored text; `text` is exactly that slice.
        page: 1-based page of `start`, or None for documents without pages.
        content: SHA-256 of the document's file; orders documents alike on every machine, as random ids cannot.
        context: lines that stand above it in the document (headings of its section, caption and header of its table);
            read with it, and never cited.
    """

    document: str
    name: str
    start: int
    end: int
    page: int | None
    text: str
    content: str = ""
    context: str = ""

    @classmethod
    def of(cls, hit: Hit) -> Passage:
        """The chunk that a search found."""
        return cls(hit.document, hit.name, hit.start, hit.end, hit.page, hit.text, hit.sha256, hit.context)

    @property
    def shown(self) -> str:
        """What a prompt says between its delimiters."""
        return f"{self.context}\n{self.text}" if self.context else self.text


@dataclass(frozen=True, slots=True)
class Span:
    """What an answer cites: the characters `start:end` of the stored text of `document`.

    Attributes:
        cited_text: what stood there when the passage was read; whether the stored slice still equals it is checked
            against the store.
        quoted: the claim repeats the cited words; False where it says the same in others.
        answer_start, answer_end: the claim that it carries, in characters of the shown answer.
        label: the passage's number (1-based place in `Prompt.passages`).
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
    """Passages by their document's content and offset, overlapping or touching ones joined.

    The order depends neither on the question nor on the ids that documents got when they were ingested: prompts
    over the same evidence share a prefix, and with it the KV pages of that prefix, and a library of the same
    files gives the same answers on every machine.
    """
    joined: list[Passage] = []
    for passage in sorted(passages, key=lambda p: (p.content, p.name, p.document, p.start, p.end)):
        last = joined[-1] if joined else None
        if last is None or last.document != passage.document or passage.start > last.end:
            joined.append(passage)
        elif passage.end > last.end:
            text = last.text + passage.text[last.end - passage.start :]
            joined[-1] = replace(last, end=passage.end, text=text)
    return joined


def hit_data(hit: Hit) -> dict[str, Any]:
    """A hit as JSON."""
    return {
        "chunk_id": hit.chunk_id,
        "document": hit.document,
        "name": hit.name,
        "start": hit.start,
        "end": hit.end,
        "page": hit.page,
        "place": hit.place,
        "context": hit.context,
        "score": hit.score,
        "text": hit.text,
    }

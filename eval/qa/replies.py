"""An answer to one question as it is kept: what was said, read and cited. Figures are made of these rows."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from eval.qa.corpus import Corpus, Span
from eval.qa.dataset import Item
from eval.qa.options import Mode


@dataclass(frozen=True)
class Cited:
    """A citation of the service: a stored span, and the characters of the answer that cite it."""

    span: Span
    verified: bool
    quoted: bool
    answer_start: int
    answer_end: int


@dataclass(frozen=True)
class Reply:
    """What came of one question.

    Attributes:
        id: of the question.
        read: what the model was given, as spans of the documents.
        ranked: for the control alone: its best sentences, the printed one first.
        stats: figures of the engine.
        error: why there is no answer.
    """

    id: str
    answer: str = ""
    finish_reason: str | None = None
    read: tuple[Span, ...] = ()
    citations: tuple[Cited, ...] = ()
    ranked: tuple[Span, ...] = ()
    stats: dict[str, Any] = field(default_factory=dict)
    error: str | None = None

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of(cls, row: dict[str, Any]) -> Reply:
        """What `as_json` made."""
        citations = tuple(Cited(**{**one, "span": _span(one["span"])}) for one in row["citations"])
        read, ranked = (tuple(map(_span, row[name])) for name in ("read", "ranked"))
        return cls(**{**row, "citations": citations, "read": read, "ranked": ranked})


class Answering(Protocol):
    """What answers: the service with a model, or the control."""

    def answers(self, items: Sequence[Item], mode: Mode, corpus: Corpus) -> AsyncIterator[Reply]:
        """A reply to each of the questions, as they come."""
        ...

    def describe(self) -> dict[str, Any]:
        """What the results must say about it."""
        ...


def _span(said: Sequence[Any]) -> Span:
    name, start, end = said
    return str(name), int(start), int(end)

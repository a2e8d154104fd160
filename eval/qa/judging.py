"""What the service says of an answer: its claims with their support.

The rule is the service's own, called at one place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from eval.qa.corpus import Corpus, Span
from eval.qa.dataset import Item
from eval.qa.replies import Reply
from service.answering.conversation.turns import standalone
from service.answering.passages import Passage
from service.answering.question import Question, Turn
from service.answering.support.judge import judge

Support = Literal["verbatim", "attributed", "none"]


@dataclass(frozen=True)
class JudgedClaim:
    """A claim of an answer, and the spans that carry it."""

    text: str
    support: Support
    spans: tuple[Span, ...]


def judged(reply: Reply, corpus: Corpus) -> list[JudgedClaim]:
    """The claims of an answer with their support by what the model was given; refusals are none."""
    passages = [_passage(span, corpus) for span in reply.read]
    return [
        JudgedClaim(
            supported.claim.text,
            supported.support,
            tuple((corpus.names[span.document], span.start, span.end) for span in supported.spans),
        )
        for supported in judge(reply.answer, passages, reply.finish_reason != "length")
    ]


def search_query(item: Item) -> str:
    """What the service searches with."""
    return standalone(as_question(item)) if item.history else item.question


def as_question(item: Item, **options: object) -> Question:
    """The question as `/v1/answer` takes it."""
    turns = [
        one
        for turn in item.history
        for one in (Turn(role="user", content=turn.question), Turn(role="assistant", content=turn.answer))
    ]
    return Question.model_validate({"question": item.question, "history": turns, **options})


def _passage(span: Span, corpus: Corpus) -> Passage:
    name, start, end = span
    return Passage(corpus.ids[name], name, start, end, None, corpus.text(span))


def spans_of(claims: Sequence[JudgedClaim]) -> list[Span]:
    """All that the claims cite."""
    return [span for claim in claims if claim.support != "none" for span in claim.spans]

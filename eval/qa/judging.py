"""What the service says of an answer: its claims with their support, and whether it is a refusal.

These are the service's own rules, called at one place.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal

from eval.qa.corpus import Corpus, Span
from eval.qa.dataset import Item
from eval.qa.replies import Reply
from retrieval.parsing.sentences import sentences
from service.answering.passages import Passage
from service.answering.question import Question, Turn

Support = Literal["verbatim", "attributed", "none"]
_REFUSAL = re.compile(
    r"\W*(?:there is nothing in the documents|(?:i'm |i am )?sorry\b|unfortunately\b"
    r"|[^.!?\n]{0,40}\b(?:documents?|texts?|passages?|context|information|answer|it)\b"
    r"[^.!?\n]{0,30}\b(?:do|does|is|are) not (?:say|mention|state|specif|provide|contain|give))",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class JudgedClaim:
    """A claim of an answer, and the spans that carry it."""

    text: str
    support: Support
    spans: tuple[Span, ...]


def rule() -> str:
    """Which rule of support `judged` applies."""
    return "support" if find_spec("service.answering.support") else "citations"


def judged(reply: Reply, corpus: Corpus) -> list[JudgedClaim]:
    """The claims of an answer, refusals left out."""
    found = _by_support(reply, corpus) if rule() == "support" else _by_citations(reply)
    return [claim for claim in found if not refused(claim.text)]


def refused(answer: str) -> bool:
    """Whether the answer says that the documents do not tell."""
    if find_spec("service.answering.refusals"):
        from service.answering.refusals import is_refusal

        return bool(is_refusal(answer))
    return _REFUSAL.match(answer) is not None


def search_query(item: Item) -> str:
    """What the service searches with."""
    if item.history and find_spec("service.answering.conversation"):
        from service.answering.conversation import standalone

        return str(standalone(as_question(item)))
    return item.question


def as_question(item: Item, **options: object) -> Question:
    """The question as `/v1/answer` takes it."""
    turns = [
        one
        for turn in item.history
        for one in (Turn(role="user", content=turn.question), Turn(role="assistant", content=turn.answer))
    ]
    return Question.model_validate({"question": item.question, "history": turns, **options})


def _by_support(reply: Reply, corpus: Corpus) -> list[JudgedClaim]:
    """By the service's rule, over what the model was given."""
    from service.answering.support import judge

    passages = [_passage(span, corpus) for span in reply.read]
    return [
        JudgedClaim(
            supported.claim.text,
            supported.support,
            tuple((corpus.names[span.document], span.start, span.end) for span in supported.spans),
        )
        for supported in judge(reply.answer, passages, reply.finish_reason != "length")
    ]


def _by_citations(reply: Reply) -> list[JudgedClaim]:
    """A sentence is what the verified citations within it carry: a quotation verbatim, a mark attributed."""
    claims = []
    for start, end in sentences(reply.answer):
        cited = [one for one in reply.citations if one.verified and one.answer_start < end and one.answer_end > start]
        support: Support = "none" if not cited else "verbatim" if any(c.quoted for c in cited) else "attributed"
        claims.append(JudgedClaim(reply.answer[start:end], support, tuple(one.span for one in cited)))
    return claims


def _passage(span: Span, corpus: Corpus) -> Passage:
    name, start, end = span
    return Passage(corpus.ids[name], name, start, end, None, corpus.text(span))


def spans_of(claims: Sequence[JudgedClaim]) -> list[Span]:
    """All that the claims cite."""
    return [span for claim in claims if claim.support != "none" for span in claim.spans]

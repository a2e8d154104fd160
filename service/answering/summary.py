"""What a document says, in a few sentences, each with its support.

A model that writes is asked for them, and what the rule of support does not carry is left out. For the embedded reader,
and where a model wrote nothing that is carried, they are sentences of the document.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from retrieval.parsing.sentences import units
from retrieval.types import Document
from service.answering.answer import Answer, Answerer, collect
from service.answering.evidence import CHARS_PER_TOKEN_MAX, Evidence, EvidenceFinder
from service.answering.given import AtHand
from service.answering.passages import Passage, Span, canonical
from service.answering.question import Question, Sampling
from service.answering.support.attribution import Attributed
from service.answering.support.claims import Claim
from service.answering.support.judge import Supported
from service.answering.telling import telling
from service.errors import PromptTooLong

READ_CHARS = 400_000
"""of a document; of a longer one as much, in so many parts from all over it"""
PARTS = 16
TOKENS = 60
"""at least, for each sentence that a model writes"""
SHOWN = 64
"""sentences of a document too long for the model's window that it is given instead, as many as fit"""
ASKED = (
    "Summarise this document in at most {wanted} sentences, in the language of the document. Say only what it says, "
    "and keep its names, numbers and dates."
)
NO_SENTENCES = "The document has no sentence that could stand for it."
NOTHING_SUPPORTED = "What the model wrote has no support in the document: these are sentences of the document itself."


@dataclass(frozen=True)
class Summary:
    """A summary; `claims` and `citations` are an answer's.

    Attributes:
        written: by the model; else the sentences are the document's own.
        read_chars: of its `chars`, how many were looked at.
        left_out: sentences of the model that the document does not support.
    """

    document: str
    version: int
    text: str
    written: bool
    claims: list[dict[str, Any]]
    citations: list[dict[str, Any]]
    chars: int
    read_chars: int
    left_out: int = 0
    note: str | None = None


async def summary(answerer: Answerer, document: str, owner: str, wanted: int) -> Summary:
    """Of at most so many sentences. Raises NotFound (retrieval's), and what a question about the document does."""
    question = Question(question=ASKED.format(wanted=wanted), documents=(document,), mode="long")
    [found] = await asyncio.to_thread(question.check, answerer.finder.library, owner)
    parts = await answerer.finder.turns.run(owner, lambda: _parts(answerer.finder, found, owner))
    if answerer.layout.quotes:
        return await answerer.finder.turns.run(owner, lambda: _extracted(answerer.finder, found, parts, owner, wanted))
    longest = max(answerer.answer_tokens, TOKENS * wanted)
    params = Sampling().params(longest, answerer.engine.sampling_defaults)
    reads = Answerer(DocumentEvidence(answerer.finder, found, parts), answerer.engine, answerer.layout)
    written = _supported(found, parts, await collect(reads.answer(question, params, owner)), wanted)
    if written.claims:
        return written
    own = await answerer.finder.turns.run(owner, lambda: _extracted(answerer.finder, found, parts, owner, wanted))
    return replace(own, left_out=written.left_out, note=own.note or NOTHING_SUPPORTED)


class DocumentEvidence(AtHand):
    """One document, whole where the model's window holds it; else the sentences that tell most of it."""

    def __init__(self, finder: EvidenceFinder, document: Document, parts: Sequence[Passage]) -> None:
        """parts: what is read of the document."""
        super().__init__(finder)
        self._document = document
        self._parts = parts

    def read(self, question: Question, room: int) -> Evidence:
        """Raises PromptTooLong: the window holds not even one sentence."""
        limit, why = self._whole_limit(room, "auto")
        passages, reason = list(self._parts), f"read whole{why}"
        shown = SHOWN
        while sum(len(one.text) for one in passages) > limit * CHARS_PER_TOKEN_MAX or (
            len((prompt := self._build(question, passages)).ids) > limit
        ):
            if shown < 1:
                raise PromptTooLong(f"The model's window of {limit} tokens holds no sentence of it.", param="document")
            passages, reason = _sentences(self._parts, shown), f"too long to read whole{why}: {shown} sentences"
            shown //= 2
        one = self._document
        results = [{"document": one.id, "name": one.name, "start": at.start, "end": at.end} for at in passages]
        return Evidence("long", reason, prompt, results, {one.id: one.name}, passages=tuple(passages))


def _parts(finder: EvidenceFinder, document: Document, owner: str) -> list[Passage]:
    """The document, or as much of it as is read, in whole sentences."""
    starts, size = [0], document.chars
    if document.chars > READ_CHARS:
        size = READ_CHARS // PARTS
        starts = [number * (document.chars - size) // (PARTS - 1) for number in range(PARTS)]
    found = []
    for start in starts:
        text = finder.library.text(document.id, start, start + size, owner, version=document.version)
        first, last = (0, len(text)) if size == document.chars else _uncut(text)
        at = start + first, start + last
        found.append(Passage(document.id, document.name, *at, None, text[first:last], document.sha256))
    return found


def _uncut(text: str) -> tuple[int, int]:
    """Where the sentences of a slice lie, but for the first and the last, which it may have cut."""
    whole = list(units(text))[1:-1]
    return (whole[0][0], whole[-1][1]) if whole else (0, 0)


def _sentences(parts: Sequence[Passage], wanted: int) -> list[Passage]:
    """So many sentences, the same share of each part."""
    each = max(1, wanted // len(parts))
    chosen = [
        replace(part, start=part.start + start, end=part.start + end, text=part.text[start:end])
        for part in parts
        for start, end in telling(part.text, each)
    ]
    return canonical(chosen[:: max(1, len(chosen) // wanted)][:wanted])


def _extracted(
    finder: EvidenceFinder, document: Document, parts: Sequence[Passage], owner: str, wanted: int
) -> Summary:
    """Sentences of the document."""
    text, claims, citations = "", [], []
    for number, one in enumerate(_sentences(parts, wanted)):
        said = " ".join(one.text.split())
        start = len(text) + bool(text)
        text = f"{text} {said}".lstrip()
        claim = Claim(start, len(text), said, "sentence")
        span = Span(document.id, one.start, one.end, None, one.text, True, start, len(text), 1)
        judged = Attributed.kept(Supported(claim, "verbatim", (span,), 1.0), [finder.check(span, owner)])
        claims.append(judged.claim_data())
        citations += judged.citation_data(number, {document.id: document.name})
    note = None if claims else NO_SENTENCES
    return _of(document, parts, text, written=False, claims=claims, citations=citations, note=note)


def _supported(document: Document, parts: Sequence[Passage], answer: Answer, wanted: int) -> Summary:
    """What the model wrote, without what has no support."""
    text, claims, citations = "", [], []
    carried = [(at, claim) for at, claim in enumerate(answer.claims) if claim["support"] != "none"]
    for number, (at, claim) in enumerate(carried[:wanted]):
        shift = len(text) + bool(text) - claim["start"]
        text = f"{text} {claim['text']}".lstrip()
        claims.append(claim | {"start": claim["start"] + shift, "end": claim["end"] + shift})
        citations += [
            one
            | {
                "claim": number,
                "answer_start": one["answer_start"] + shift,
                "answer_end": one["answer_end"] + shift,
            }
            for one in answer.citations
            if one["claim"] == at
        ]
    left_out = len(answer.claims) - len(carried)
    return _of(document, parts, text, written=True, claims=claims, citations=citations, left_out=left_out)


def _of(document: Document, parts: Sequence[Passage], text: str, **more: Any) -> Summary:
    read = sum(len(part.text) for part in parts)
    return Summary(document.id, document.version, text, chars=document.chars, read_chars=read, **more)

"""From a question to the passages that the model will read: whole documents, or what retrieval finds.

Mode `auto` chooses between the two and says why; mode iterative has its evidence from `service.answering.iterative`.
"""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import structlog

from drafters.options import DraftPromptOptions
from retrieval.errors import NotFound as RetrievalNotFound
from retrieval.errors import RetrievalError
from retrieval.library import Library
from retrieval.types import Document, Hit
from service.answering.conversation.turns import LAST_EXCHANGE, fitted
from service.answering.passages import Passage, Span, hit_data
from service.answering.prompting.layouts import Prompt, PromptLayout
from service.answering.question import Question
from service.answering.support.citations import Citation, check
from service.answering.sureness import Likely, likely, pointed_out
from service.errors import PromptTooLong
from service.settings import Settings
from service.turns import Turns

log = structlog.get_logger(__name__)

WIDER = 3
"""times as many passages in a wider search, …"""
MOST_PASSAGES = 100
"""… and never more than these"""
PLACES = 4
"""Questions whose evidence is gathered and ranked at once; one owner has all but one of them."""
PASSAGES = 8
"""Retrieved for an answer where neither question, settings nor what was measured of the model say."""
CHARS_PER_TOKEN_MAX = 12
"""No tokenizer in use averages more characters a token over running text: beyond it, counting is not needed."""


@dataclass(frozen=True)
class Evidence:
    """What the model will read.

    Attributes:
        prompt: ready for the engine; None where there is nothing to answer from.
        results: what was read, for the `search_results` event.
        query: what was searched for, or asked of a model that follows no conversation; None where neither.
        turns: earlier turns that the prompt holds.
        names: document id → name.
    """

    mode: str
    reason: str
    prompt: Prompt | None
    results: list[dict[str, Any]]
    names: dict[str, str] = field(default_factory=dict)
    retrieval_ms: float = 0.0
    generation: int = 0
    query: str | None = None
    turns: int = 0
    draft_ids: list[int] | None = None
    """A prompt over retrieved passages alone, for drafters that read less than the model does."""
    passages: tuple[Passage, ...] = ()
    """those that the prompt was built of, in the order in which the layout got them"""
    likely: tuple[str, ...] = ()
    """sentences that the prompt points out beside the question"""


class EvidenceFinder:
    """Chooses the mode and gathers the evidence."""

    WHOLE_DOCUMENTS = 20
    """Most documents that mode auto considers reading whole."""

    def __init__(self, library: Library, layout: PromptLayout, window: int, settings: Settings) -> None:
        self.library = library
        self.layout = layout
        self.window = window
        self.settings = settings
        self.turns = Turns(PLACES)

    async def find(
        self,
        question: Question,
        owner: str,
        named: Sequence[Document],
        answer_tokens: int,
        draft: DraftPromptOptions | None = None,
    ) -> Evidence:
        """Evidence for a question that has been checked, leaving room for an answer of `answer_tokens`.

        Args:
            named: the documents that it names.
            draft: in mode long also make the shorter prompt of a drafter, over these passages.

        Raises PromptTooLong: mode long was asked for and the documents do not fit.
        """
        room = self.window - answer_tokens
        evidence = await self.turns.run(owner, lambda: self._find(question, owner, named, room))
        if evidence.mode != "long" or draft is None:
            return evidence
        began = time.perf_counter()
        ids = await self.turns.run(owner, lambda: self._shorter(question, owner, room, draft))
        return replace(evidence, draft_ids=ids, retrieval_ms=(time.perf_counter() - began) * 1000)

    def nearest(self, question: Question, evidence: Evidence, owner: str) -> tuple[list[Hit], str]:
        """The passages that a search brings, the best first, and how it searches: of what was read, where that was
        read whole. Blocks; errors are retrieval's."""
        if evidence.mode != "long":
            return [Hit(**result) for result in evidence.results], "hybrid"
        read = [result["document"] for result in evidence.results]
        query = evidence.query or question.query
        return list(self.library.search(query, k=PASSAGES, owner=owner, documents=read).hits), "hybrid"

    def check(self, span: Span, owner: str) -> Citation:
        """A span compared with the characters that the store holds now: a document that is gone verifies nothing."""
        try:
            stored = self.library.text(span.document, owner=owner, start=span.start, end=span.end)
            page = self.library.page_of(span.document, span.start, owner)
            place = self.library.place_of(span.document, span.start, span.end, owner)
        except RetrievalNotFound:
            return check(span, None, span.page)
        verdict = replace(check(span, stored, page), place=place)
        return replace(verdict, boxes=self._boxes(span, owner)) if verdict.verified else verdict

    def _find(self, question: Question, owner: str, named: Sequence[Document], room: int) -> Evidence:
        if question.mode == "retrieval":
            return self._retrieve(question, owner, room, "asked for")
        scope = named or self._whole_collection(question, owner)
        if scope is None:
            if question.mode == "long":
                raise PromptTooLong(
                    f"There are more than {self.WHOLE_DOCUMENTS} documents to read whole.",
                    hint="Name some, or use mode retrieval.",
                    param="mode",
                )
            return self._retrieve(question, owner, room, f"more than {self.WHOLE_DOCUMENTS} documents: retrieval")
        if not scope:
            return Evidence(question.mode, "there are no documents", None, [])
        return self._read_whole(question, owner, scope, room)

    def _whole_collection(self, question: Question, owner: str) -> list[Document] | None:
        """Its readable documents, or None where they are too many to be read whole."""
        found = self.library.documents(question.collection, owner, limit=self.WHOLE_DOCUMENTS + 1)
        readable = [document for document in found if document.readable]
        return readable if len(found) <= self.WHOLE_DOCUMENTS else None

    def _read_whole(self, question: Question, owner: str, scope: Sequence[Document], room: int) -> Evidence:
        """Mode long; for auto, retrieval instead where the documents are too long to be read whole."""
        limit, why = self._whole_limit(room, question.mode)
        scope = sorted(scope, key=lambda document: (document.sha256, document.name))  # as the prompt has them
        chars = sum(document.chars for document in scope)
        tokens: int | None = None
        prompt = None
        asked = question
        passages: list[Passage] = []
        if chars <= limit * CHARS_PER_TOKEN_MAX:
            passages = [
                Passage(d.id, d.name, 0, d.chars, None, self.library.text(d.id, owner=owner), d.sha256) for d in scope
            ]
            least = LAST_EXCHANGE if question.mode == "auto" else 0  # which retrieval has room for
            asked, prompt = fitted(question, lambda one: self._build(one, passages), limit, least)
            tokens = len(prompt.ids)
        size = f"{_thousands(tokens)}" if tokens is not None else f"over {_thousands(chars // CHARS_PER_TOKEN_MAX)}"
        if prompt is not None and tokens is not None and tokens <= limit:
            results = [{"document": d.id, "name": d.name, "start": 0, "end": d.chars, "page": 1} for d in scope]
            names = {d.id: d.name for d in scope}
            reason = f"fits: {size} of {_thousands(limit)} tokens{why}{_left_out(question, asked)}"
            query = None if self.layout.follows else question.query
            turns = len(asked.history)
            return Evidence("long", reason, prompt, results, names, query=query, turns=turns, passages=tuple(passages))
        if question.mode == "long":
            raise PromptTooLong(
                f"Reading the documents whole takes {size} tokens; the model holds {_thousands(limit)}{why}.",
                hint="Use mode retrieval, or fewer documents.",
                param="mode",
            )
        subject = "document" if len(scope) == 1 else "documents"
        reason = f"{subject} too long to read whole ({size} of {_thousands(limit)} tokens{why}): retrieval"
        return self._retrieve(question, owner, room, reason)

    def _whole_limit(self, room: int, mode: str) -> tuple[int, str]:
        """Longest prompt to read whole, and a word on where the limit comes from.

        Whoever asks for mode long gets the whole window; auto keeps to what the model was measured to do.
        """
        limits = [(room, "")]
        if mode == "auto":
            if self.settings.long_tokens is not None:
                limits.append((self.settings.long_tokens, " set by FOLIO_LONG_TOKENS"))
            if self.layout.limits is not None and self.layout.limits.long_tokens is not None:
                limits.append((self.layout.limits.long_tokens, f", by its {self.layout.limits.source}"))
        return min(limits, key=lambda entry: entry[0])

    def _shorter(self, question: Question, owner: str, room: int, draft: DraftPromptOptions) -> list[int] | None:
        """The question over the passages nearest to it alone (RAPID, 2502.20330), the best that fit, or None.

        They are chunks as the library has cut them, as many as `draft.context` tokens hold.
        """
        found = self.library.search(
            question.query,
            k=MOST_PASSAGES if draft.context else self._count(question),
            owner=owner,
            collection=question.collection,
            documents=list(question.documents) or None,
            mode="dense" if draft.threshold else "hybrid",  # whose scores are cosines
        )
        passages = [Passage.of(hit) for hit in found.hits if not draft.threshold or hit.score >= draft.threshold]

        def ids(count: int) -> list[int]:
            return self._build(question, passages[:count]).ids

        most = min(room, draft.context or room)
        fitting = bisect_right(range(1, len(passages) + 1), most, key=lambda count: len(ids(count)))
        return ids(fitting) if fitting else None

    def _count(self, question: Question) -> int:
        """Passages of an answer by retrieval."""
        measured = self.layout.limits.passages if self.layout.limits is not None else None
        return question.passages or self.settings.passages or measured or PASSAGES

    def _retrieve(self, question: Question, owner: str, room: int, reason: str) -> Evidence:
        """The best passages that fit."""
        count = self._count(question)
        if question.wider:
            count = min(count * WIDER, MOST_PASSAGES)
        began = time.perf_counter()
        found = self.library.search(
            question.query,
            k=count,
            owner=owner,
            collection=question.collection,
            documents=list(question.documents) or None,
            rerank=question.rerank or question.wider,
        )
        retrieval_ms = (time.perf_counter() - began) * 1000
        reason += f"; {found.note}" if found.note else ""
        hits = list(found.hits)
        if not hits:
            nothing = f"{reason}; nothing found"
            return Evidence("retrieval", nothing, None, [], {}, retrieval_ms, found.generation, question.query)

        texts = [question.query, *(hit.text for hit in hits)]
        reads = not self.layout.quotes and self.library.ranker.knows(*texts)  # a model that quotes asks it itself
        judged = likely(self.library.ranker, question.query, hits) if reads or question.refuse_below else []

        def beside() -> list[str]:
            return pointed_out(judged, len(hits)) if reads else []

        def build(asked: Question) -> Prompt:
            return self._build(asked, [Passage.of(hit) for hit in hits], beside())

        reads = reads and len(build(question).ids) <= room  # what is only repeated has the least right to room
        asked, prompt = fitted(question, build, room, least=LAST_EXCHANGE)
        while len(prompt.ids) > room and len(hits) > 1:
            hits.pop()
            prompt = build(asked)
        asked, prompt = fitted(asked, build, room)
        if len(hits) < len(found.hits):
            reason += f"; {len(hits)} of {len(found.hits)} passages fit"
        fits = len(prompt.ids) <= room  # else that is what is wrong
        refusal = self._refusal(question, [one for one in judged if one.hit < len(hits)]) if fits else None
        if refusal is not None:
            reason = f"{reason}; {refusal}"
        return Evidence(
            mode="retrieval",
            reason=reason + _left_out(question, asked),
            prompt=prompt if refusal is None else None,
            results=[hit_data(hit) for hit in hits],
            names={hit.document: hit.name for hit in hits},
            retrieval_ms=retrieval_ms,
            generation=found.generation,
            query=question.query,
            turns=len(asked.history),
            passages=tuple(Passage.of(hit) for hit in hits),
            likely=tuple(beside()),
        )

    def _refusal(self, question: Question, judged: Sequence[Likely]) -> str | None:
        """Why the model is not asked: nothing that was found answers, as far as the ranker can tell."""
        if not judged:
            return None
        bound = 0.0 if question.wider else question.refuse_below
        if bound is None:
            bound = self.library.ranker.refuse_below(question.query, len(judged))
        sure = judged[0].probability
        if sure >= bound:
            return None
        return f"the surest sentence answers with a probability of {sure:.2f}, less than {bound:.2f}"

    def _build(self, question: Question, passages: Sequence[Passage], likely: Sequence[str] = ()) -> Prompt:
        return self.layout.build(question.text, passages, question.turns, likely, question.instructions)

    def _boxes(self, span: Span, owner: str) -> tuple[dict[str, float], ...]:
        """Where a verified span is printed; nothing for a file without pages, or one that cannot be drawn."""
        try:
            found = self.library.boxes(span.document, span.start, span.end, owner)
        except RetrievalError as error:
            log.warning("a citation has no boxes", document=span.document, cause=str(error))
            return ()
        return tuple(asdict(box) for box in found)


def _left_out(question: Question, asked: Question) -> str:
    """A word on the turns that had no room."""
    turns, kept = len(question.history), len(asked.history)
    return f"; {kept} of {turns} earlier turns fit" if kept < turns else ""


def _thousands(count: int) -> str:
    """41k for 41,234; small numbers as they are."""
    return str(count) if count < 1000 else f"{count / 1000:.1f}k" if count < 10_000 else f"{count // 1000}k"

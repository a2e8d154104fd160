"""The claims of an answer judged while it is written, beside the event loop and the engine.

Each look at the text runs in a thread of its own, one at a time: it judges the claims that have become whole since the
last, and compares what carries them with the store. What it finds is given out with the next token.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from service.answering.passages import Passage, Span
from service.answering.support.citations import Citation
from service.answering.support.judge import Judge, Supported
from service.answering.support.lexicon import lexicon_of
from service.answering.support.refusals import is_refusal

NO_SUPPORT = "Nothing in the passages supports this answer."
NO_SENTENCE = "The passages hold no sentence that could support an answer."
OTHER_LANGUAGE = "The passages are in another language than the answer: its claims could not be compared with them."
UNFINISHED = "The answer was cut off: its last claim is unfinished and has no support."

_MAY_END = re.compile(r"[.!?…。！？;:|\n]")


@dataclass(frozen=True, slots=True)
class Attributed:
    """A claim with its support and what of it the store still holds.

    A span that the store no longer has takes the support away: see `kept`.
    """

    judged: Supported
    citations: tuple[Citation, ...]

    @classmethod
    def kept(cls, judged: Supported, citations: Sequence[Citation]) -> Attributed:
        """The claim without support where one of its spans is gone or changed."""
        if all(citation.verified for citation in citations):
            return cls(judged, tuple(citations))
        gone = tuple(replace(citation, verified=False, boxes=()) for citation in citations)
        return cls(replace(judged, support="none"), gone)

    def claim_data(self) -> dict[str, Any]:
        """The claim as JSON."""
        claim = self.judged.claim
        return {
            "start": claim.start,
            "end": claim.end,
            "text": claim.text,
            "kind": claim.kind,
            "support": self.judged.support,
            "score": round(self.judged.score, 4),
        }

    def citation_data(self, number: int, names: Mapping[str, str]) -> list[dict[str, Any]]:
        """Its citations as JSON; `number` is the claim's in the answer."""
        return [
            {
                "document": citation.span.document,
                "name": names.get(citation.span.document, ""),
                "start": citation.span.start,
                "end": citation.span.end,
                "page": citation.page,
                "place": citation.place,
                "cited_text": citation.span.cited_text,
                "verified": citation.verified,
                "support": self.judged.support,
                "claim": number,
                "quoted": citation.span.quoted,
                "label": citation.span.label,
                "answer_start": citation.span.answer_start,
                "answer_end": citation.span.answer_end,
                "boxes": list(citation.boxes),
            }
            for citation in self.citations
        ]


class Attribution:
    """Judges one answer as it grows."""

    def __init__(self, passages: Sequence[Passage], check: Callable[[Span], Citation]) -> None:
        """check: compares a span with the store; called in a thread."""
        self._passages = passages
        self._judge = Judge(passages)
        self._check = check
        self._done: list[Attributed] = []
        self._given = 0
        self._looked = 0
        self._look: asyncio.Task[None] | None = None

    def feed(self, text: str) -> list[tuple[int, Attributed]]:
        """Look at an answer so far where a claim may have ended; the claims, by number, that were judged meanwhile."""
        if self._look is not None and self._look.done():
            self._look.result()
            self._look = None
        if self._look is None and _MAY_END.search(text, self._looked):
            self._looked = len(text)
            self._look = asyncio.create_task(asyncio.to_thread(self._add, text, False, False))
        return self._news()

    async def end(self, text: str, finished: bool) -> list[tuple[int, Attributed]]:
        """Judge the rest; the claims that `feed` has not given."""
        if self._look is not None:
            await self._look
        await asyncio.to_thread(self._add, text, finished, True)
        return self._news()

    async def stop(self) -> None:
        """Wait for the look under way, for no thread may outlive its answer."""
        if self._look is not None:
            await asyncio.wait([self._look])
            self._look = None

    @property
    def claims(self) -> list[Attributed]:
        """Those judged so far."""
        return self._done

    def note(self, answer: str, finish: str | None) -> str | None:
        """What has to be said about an answer's support, or None."""
        if is_refusal(answer):
            return None
        if any(one.judged.support != "none" for one in self._done):
            return UNFINISHED if finish == "length" else None
        if not self._judge.can_support:
            return NO_SENTENCE
        said = lexicon_of(answer)
        read = {one.code for one in (lexicon_of(passage.text) for passage in self._passages) if one is not None}
        return OTHER_LANGUAGE if said is not None and read and said.code not in read else NO_SUPPORT

    def _news(self) -> list[tuple[int, Attributed]]:
        first, self._given = self._given, len(self._done)
        return list(enumerate(self._done[first : self._given], start=first))

    def _add(self, text: str, finished: bool, last: bool) -> None:
        """last: nothing will follow, so that a claim which is not whole never will be."""
        judged = [one for one in self._judge.judge(text, finished) if one.claim.whole or last]
        for one in judged[len(self._done) :]:
            self._done.append(Attributed.kept(one, [self._check(span) for span in one.spans]))

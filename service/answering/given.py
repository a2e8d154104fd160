"""Documents that come with the question itself: read whole, cited like stored ones, and kept nowhere."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from drafters.options import DraftPromptOptions
from retrieval.types import Document, Hit
from service.answering.conversation.turns import fitted
from service.answering.evidence import Evidence, EvidenceFinder
from service.answering.passages import Passage, Span
from service.answering.prompting.layouts import ChatLayout, PlainLayout
from service.answering.question import Question
from service.answering.support.citations import Citation, check


class AtHand(EvidenceFinder, ABC):
    """Finds nothing: the evidence is there."""

    def __init__(self, finder: EvidenceFinder) -> None:
        """finder: in whose stead it stands."""
        super().__init__(finder.library, finder.layout, finder.window, finder.settings)
        self.turns = finder.turns

    async def find(
        self,
        question: Question,
        owner: str,
        named: Sequence[Document],
        answer_tokens: int,
        draft: DraftPromptOptions | None = None,
    ) -> Evidence:
        return await self.turns.run(owner, lambda: self.read(question, self.window - answer_tokens))

    @abstractmethod
    def read(self, question: Question, room: int) -> Evidence:
        """What there is, of at most `room` tokens. Raises PromptTooLong."""

    def nearest(self, question: Question, evidence: Evidence, owner: str) -> tuple[list[Hit], str]:
        """None: nothing was searched for."""
        return [], ""


class GivenDocuments(AtHand):
    """All documents that came with a question; earlier turns as far as there is room."""

    def __init__(self, finder: EvidenceFinder, passages: Sequence[Passage]) -> None:
        """passages: whole documents, each under an id of its own."""
        super().__init__(finder)
        self._passages = passages
        self._texts = {passage.document: passage.text for passage in passages}

    def check(self, span: Span, owner: str) -> Citation:
        """A span compared with the document as it was given."""
        return check(span, self._texts[span.document][span.start : span.end], span.page)

    def read(self, question: Question, room: int) -> Evidence:
        if isinstance(self.layout, ChatLayout | PlainLayout):
            self.layout.encoder.check_length([passage.text for passage in self._passages], room)
        asked, prompt = fitted(question, lambda one: self._build(one, self._passages), room)
        results = [{"document": one.document, "name": one.name, "start": 0, "end": one.end} for one in self._passages]
        names = {one.document: one.name for one in self._passages}
        return Evidence("long", "given with the question", prompt, results, names, turns=len(asked.history))

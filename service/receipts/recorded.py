"""The evidence that a receipt names, read from the store again: an answer is made of it without another search."""

from __future__ import annotations

from collections.abc import Sequence

from drafters.options import DraftPromptOptions
from retrieval.errors import RetrievalError
from retrieval.library import Library
from retrieval.types import Document, Hit
from service.answering.evidence import Evidence, EvidenceFinder
from service.answering.passages import Passage
from service.answering.question import Question
from service.receipts.receipt import PassageRecord, Receipt, digest_of_text


class RecordedEvidence(EvidenceFinder):
    """Finds what was found before."""

    def __init__(self, finder: EvidenceFinder, receipt: Receipt, passages: Sequence[Passage]) -> None:
        """passages: those of the receipt, with their text."""
        super().__init__(finder.library, finder.layout, finder.window, finder.settings)
        self.turns = finder.turns
        self._receipt = receipt
        self._passages = passages

    async def find(
        self,
        question: Question,
        owner: str,
        named: Sequence[Document],
        answer_tokens: int,
        draft: DraftPromptOptions | None = None,
    ) -> Evidence:
        """The prompt over the recorded passages, in their order."""
        receipt = self._receipt
        prompt = await self.turns.run(owner, lambda: self._build(question, self._passages, receipt.likely))
        return Evidence(
            receipt.mode,
            "as the receipt has it",
            prompt,
            results=[],
            names={passage.document: passage.name for passage in self._passages},
            generation=receipt.generation,
            turns=len(receipt.history),
            passages=tuple(self._passages),
            likely=receipt.likely,
        )

    def nearest(self, question: Question, evidence: Evidence, owner: str) -> tuple[list[Hit], str]:
        """None: nothing is searched again."""
        return [], ""


def stored_text(library: Library, record: PassageRecord, owner: str) -> str | None:
    """The characters that a passage had, from whichever version of the document has its file; None: no longer there.

    What belongs to somebody else is not there either.
    """
    try:
        version = library.version_of(record.document, record.file, owner)
        text = library.text(record.document, record.start, record.end, owner, version=version)
    except RetrievalError:
        return None
    return text if digest_of_text(text) == record.sha256 else None

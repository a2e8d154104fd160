"""The evidence that a receipt names, read from the store again: an answer is made of it without another search."""

from __future__ import annotations

from collections.abc import Sequence

from retrieval.errors import RetrievalError
from retrieval.library import Library
from service.answering.evidence import Evidence, EvidenceFinder
from service.answering.given import AtHand
from service.answering.passages import Passage
from service.answering.question import Question
from service.receipts.receipt import PassageRecord, Receipt, digest_of_text


class RecordedEvidence(AtHand):
    """Finds what was found before."""

    def __init__(self, finder: EvidenceFinder, receipt: Receipt, passages: Sequence[Passage]) -> None:
        """passages: those of the receipt, with their text."""
        super().__init__(finder)
        self._receipt = receipt
        self._passages = passages

    def read(self, question: Question, room: int) -> Evidence:
        """The prompt over the recorded passages, in their order: it had room when the receipt was made."""
        receipt = self._receipt
        return Evidence(
            receipt.mode,
            "as the receipt has it",
            self._build(question, self._passages, receipt.likely),
            results=[],
            names={passage.document: passage.name for passage in self._passages},
            generation=receipt.generation,
            turns=len(receipt.history),
            passages=tuple(self._passages),
            likely=receipt.likely,
        )


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

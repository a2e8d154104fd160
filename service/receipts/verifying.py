"""Verification: is a receipt genuine, are its passages still stored, and does the answer come out again?

Every look at the store is made in the name of whoever verifies. What belongs to somebody else looks exactly like what
was deleted, so that a receipt tells nobody more than it says itself; and no verdict shows a word of a document.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from retrieval.errors import RetrievalError
from retrieval.library import Library
from service.answering.answer import Answerer, AnswerFailed, Made
from service.answering.passages import Passage
from service.answering.question import Question
from service.engine.params import SamplingParams
from service.receipts.making import ReceiptMaker
from service.receipts.receipt import CitationRecord, Maker, PassageRecord, Receipt, digest_of_text, signed_bytes
from service.receipts.recorded import RecordedEvidence, stored_text
from service.receipts.signing import is_signed

Seal = Literal["genuine", "altered", "foreign"]
"""altered: it is not what was signed; foreign: another installation's key signed it, of which nothing is known here."""
State = Literal["stored", "changed", "gone"]
"""changed: an earlier version holds it, the present one does not; gone: erased, or never the asker's."""
Outcome = Literal["equal", "differs", "not compared"]

EXACT = "exact"
TEXT = "text"
LEAST_ROWS = 256
"""of a prompt in float32, up to which its bits depend on nothing (docs/drafting.md)"""
DECIDES = tuple(name for name in Maker.model_fields if name not in ("name", "software"))
"""Of a maker: what, besides the software, may change a bit."""


@dataclass
class Verdict:
    """What came out.

    Attributes:
        ok: genuine, and the answer comes out again as far as it is promised to.
        current: its passages and citations still stand in the present versions of their documents.
        says: one line: what differs, or that nothing does.
        altered: fields that are not what was signed.
        guarantee: exact (the same tokens) or text; `differs` names what of the model and machine is another, or why
            the tokens would not be promised on the same.
    """

    ok: bool = False
    current: bool = False
    says: str = ""
    seal: Seal = "genuine"
    altered: list[str] = field(default_factory=list)
    guarantee: str = EXACT
    differs: list[str] = field(default_factory=list)
    tokens: Outcome = "not compared"
    text: Outcome = "not compared"
    passages: list[State] = field(default_factory=list)
    citations: list[State] = field(default_factory=list)


class Verifier:
    """Verifies the receipts of one installation for one owner."""

    def __init__(self, library: Library, answerer: Answerer, maker: ReceiptMaker, owner: str) -> None:
        self._library = library
        self._answerer = answerer
        self._maker = maker
        self._owner = owner

    async def verify(self, receipt: Receipt) -> Verdict:
        """Raises FolioError where the engine takes no requests; everything else is part of the verdict."""
        verdict = Verdict()
        verdict.seal = await asyncio.to_thread(self._seal, receipt)
        if verdict.seal != "genuine":
            verdict.altered = receipt.altered()
            verdict.says = _of_seal(verdict)
            return verdict
        texts = await asyncio.to_thread(self._look, receipt, verdict)
        verdict.differs = differences(receipt.maker, self._maker.maker(receipt.maker.attention))
        if not verdict.differs and (why := unpromised(receipt)):
            verdict.differs = [why]
        verdict.guarantee = TEXT if verdict.differs else EXACT
        verdict.current = all(state == "stored" for state in [*verdict.passages, *verdict.citations])
        why = await self._again(receipt, texts, verdict)
        verdict.ok = not why
        verdict.says = f"{why or _equal(receipt, verdict)}{_of_store(receipt, verdict)}"
        return verdict

    def _seal(self, receipt: Receipt) -> Seal:
        if not is_signed(signed_bytes(receipt.digests_signed), receipt.signature, receipt.key) or receipt.altered():
            return "altered"
        return "genuine" if receipt.key == self._maker.signer.public else "foreign"

    def _look(self, receipt: Receipt, verdict: Verdict) -> list[str | None]:
        """The texts of the passages; fills in what became of passages and citations."""
        texts = [stored_text(self._library, record, self._owner) for record in receipt.passages]
        verdict.passages = [
            "gone" if text is None else self._state(record.document, record.start, record.end, record.sha256)
            for record, text in zip(receipt.passages, texts, strict=True)
        ]
        verdict.citations = [self._state(one.document, one.start, one.end, one.sha256) for one in receipt.citations]
        return texts

    def _state(self, document: str, start: int, end: int, sha256: str) -> State:
        """Whether the present version of a document has these characters."""
        try:
            now = self._library.text(document, start, end, self._owner)
        except RetrievalError:
            return "gone"
        return "stored" if digest_of_text(now) == sha256 else "changed"

    async def _again(self, receipt: Receipt, texts: Sequence[str | None], verdict: Verdict) -> str:
        """Make the answer again and compare; returns why it is not the same, empty where it is."""
        if receipt.prompt is None:
            return ""  # no model was asked
        if "fingerprint" in verdict.differs or "tokenizer" in verdict.differs:
            here = self._maker.maker(None).name
            return f"Made with the model {receipt.maker.name}, and {here} runs here: the answer was not made again"
        known = [(record, text) for record, text in zip(receipt.passages, texts, strict=True) if text is not None]
        if len(known) < len(receipt.passages):
            return "The answer cannot be made again"
        try:
            made = await self._made(receipt, [_passage(record, text) for record, text in known])
        except AnswerFailed as error:
            return f"The answer cannot be made again: {error.message}"
        body = self._maker.body(made)
        if body.prompt != receipt.prompt:
            verdict.guarantee = TEXT
            verdict.differs.append("prompt")
        verdict.tokens = "equal" if body.token_ids == receipt.token_ids else "differs"
        verdict.text = "equal" if body.answer == receipt.answer else "differs"
        if verdict.tokens == "equal" or (verdict.guarantee == TEXT and verdict.text == "equal"):
            return ""
        return _unequal(receipt.token_ids, body.token_ids, verdict)

    async def _made(self, receipt: Receipt, passages: Sequence[Passage]) -> Made:
        """The answer once more, of the recorded evidence."""
        finder = RecordedEvidence(self._answerer.finder, receipt, passages)
        answerer = Answerer(finder, self._answerer.engine, self._answerer.layout)
        question = Question(
            question=receipt.question,
            history=receipt.history,
            instructions=receipt.instructions,
            mode=receipt.mode,
        )
        params = SamplingParams(**receipt.sampling.model_dump(), attention=receipt.maker.attention, owner=self._owner)
        kept: list[Made] = []

        def record(made: Made) -> dict[str, Any]:
            kept.append(made)
            return {}

        async for event in answerer.answer(question, params, self._owner, record):
            if event.type == "error":
                raise AnswerFailed(event.data)
        [made] = kept
        return made


def differences(made: Maker, here: Maker) -> list[str]:
    """What of the model, the machine and the software is another than it was."""
    fields = [name for name in DECIDES if getattr(made, name) != getattr(here, name)]
    return fields + sorted(
        name for name in {*made.software, *here.software} if made.software.get(name) != here.software.get(name)
    )


def unpromised(receipt: Receipt) -> str:
    """Why the same tokens are not promised where model, machine and software are the same; empty where they are.

    As the table in docs/drafting.md has it.
    """
    maker = receipt.maker
    if maker.device != "cpu":
        return "device"
    if not maker.kernels:
        return "kernels"
    if maker.weights != "plain":
        return ""
    if maker.dtype != "float32":
        return "dtype"
    return "" if maker.batch_invariant or receipt.prompt_tokens <= LEAST_ROWS else "batch_invariant"


def _passage(record: PassageRecord, text: str) -> Passage:
    return Passage(
        record.document, record.name, record.start, record.end, record.page, text, record.file, record.context
    )


def _of_seal(verdict: Verdict) -> str:
    if verdict.seal == "foreign":
        return "Another installation signed this receipt: its documents and model are not known here."
    if verdict.altered:
        return f"Altered after it was signed: {', '.join(verdict.altered)}."
    return (
        "The signature is not that of the key that the receipt names: it was not signed, or its digests were altered."
    )


def _equal(receipt: Receipt, verdict: Verdict) -> str:
    if receipt.prompt is None:
        return "Genuine; no model was asked"
    if verdict.tokens == "equal":
        return f"Genuine; all {len(receipt.token_ids)} tokens are equal"
    return f"Genuine; the text is equal (tokens are not promised, for {', '.join(verdict.differs)})"


def _unequal(before: Sequence[int], now: Sequence[int], verdict: Verdict) -> str:
    at = next((i for i, (one, other) in enumerate(zip(before, now, strict=False)) if one != other), None)
    at = min(len(before), len(now)) if at is None else at
    promised = (
        "" if verdict.guarantee == EXACT else f" (equal tokens are not promised, for {', '.join(verdict.differs)})"
    )
    return f"Genuine, but the answer differs from token {at + 1} of {len(before)} on{promised}"


def _of_store(receipt: Receipt, verdict: Verdict) -> str:
    """The end of the line: what became of the documents."""
    places: list[tuple[PassageRecord | CitationRecord, State]] = [
        *zip(receipt.passages, verdict.passages, strict=True),
        *zip(receipt.citations, verdict.citations, strict=True),
    ]
    gone = {record.document for record, state in places if state == "gone"}
    changed = {record.document for record, state in places if state == "changed"} - gone
    said = []
    if gone:
        said.append(f"{_documents(gone)} no longer here")
    if changed:
        said.append(f"{_documents(changed)} changed since")
    if said:
        return f"; {'; '.join(said)}."
    return "; passages and citations still stand in the documents." if receipt.passages else "."


def _documents(ids: set[str]) -> str:
    named = ", ".join(sorted(ids)[:5])
    verb = "is" if len(ids) == 1 else "are"
    more = f" and {len(ids) - 5} more" if len(ids) > 5 else ""
    return f"document{'s' if len(ids) > 1 else ''} {named}{more} {verb}"

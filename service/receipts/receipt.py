"""A receipt: everything that decided an answer, as plain data, and the digests that are signed.

It holds the question, what was read (ids, places and digests; of the documents' own words only the headings that stood
above a passage and the sentences that stood beside the question), how tokens were chosen, and the answer's tokens.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from service.answering.question import MAX_INSTRUCTIONS, Frozen, History
from service.fields import DocumentId, PolicyName, Text

FORMAT: Literal["folio-receipt-1"] = "folio-receipt-1"
MOST_PASSAGES = 1000
MOST_TOKENS = 1 << 17

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
"""SHA-256 in hexadecimal."""
Offset = Annotated[int, Field(ge=0, lt=2**53)]
Name = Annotated[Text, Field(max_length=4096)]
Support = Literal["verbatim", "attributed", "none"]


class PassageRecord(Frozen):
    """A passage that was read, in the order in which the prompt was built of them."""

    document: DocumentId
    name: Name
    file: str = Field(max_length=64, description="SHA-256 of the document's file, which names its version.")
    start: Offset
    end: Offset
    page: int | None
    sha256: Digest = Field(description="Of the characters start:end.")
    context: Text = Field(max_length=100_000)


class CitationRecord(Frozen):
    """A span that carried a claim."""

    document: DocumentId
    file: str = Field(max_length=64)
    start: Offset
    end: Offset
    sha256: Digest
    claim: int = Field(ge=0)
    support: Support


class Maker(Frozen):
    """The model that wrote the answer, and what computed it."""

    name: Name
    fingerprint: Name
    tokenizer: Name
    device: Name
    dtype: Name
    weights: Name
    kv_dtype: Name
    batch_invariant: bool
    attention: PolicyName
    kernels: Name = Field(description="Of the CPU kernels: sources, compiler, instructions; empty where none ran.")
    software: dict[Annotated[str, Field(max_length=64)], Name] = Field(max_length=32)


class SamplingRecord(Frozen):
    """How tokens were chosen."""

    max_tokens: int = Field(ge=1, le=65536)
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    frequency_penalty: float
    presence_penalty: float
    repetition_penalty: float
    seed: int = Field(ge=0, lt=2**63)


class ReceiptBody(Frozen):
    """What is said; each field is digested by itself."""

    format: Literal["folio-receipt-1"]
    made_at: Annotated[str, Field(max_length=64)]
    question: Text = Field(max_length=40_000, description="As the model was asked it.")
    history: History = ()
    instructions: Text = Field("", max_length=MAX_INSTRUCTIONS, description="How the answer was to be given.")
    mode: Literal["long", "retrieval"]
    maker: Maker
    sampling: SamplingRecord
    generation: int = Field(ge=0, description="Of the index that was searched; 0 where none was.")
    passages: tuple[PassageRecord, ...] = Field(max_length=MOST_PASSAGES)
    likely: tuple[Text, ...] = Field((), max_length=MOST_PASSAGES, description="Sentences beside the question.")
    prompt: Digest | None = Field(description="Of the prompt's token ids; null where no model was asked.")
    prompt_tokens: int = Field(ge=0)
    token_ids: tuple[Annotated[int, Field(ge=0, lt=2**31)], ...] = Field(max_length=MOST_TOKENS)
    finish_reason: Annotated[str, Field(max_length=64)] | None
    answer: Text = Field(max_length=2_000_000)
    refused: bool
    citations: tuple[CitationRecord, ...] = Field(max_length=10_000)

    def digests(self) -> dict[str, str]:
        """Field → SHA-256 of its canonical JSON."""
        return {name: digest_of(value) for name, value in self.content().items()}

    def content(self) -> dict[str, Any]:
        """The fields of the body as JSON, whatever else this object holds."""
        return self.model_dump(mode="json", include=set(ReceiptBody.model_fields))


class Receipt(ReceiptBody):
    """A body with its digests and their signature."""

    digests_signed: dict[Annotated[str, Field(max_length=64)], Digest] = Field(max_length=64)
    key: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] = Field(description="Public key (Ed25519) of the signer.")
    signature: Annotated[str, Field(pattern=r"^[0-9a-f]{128}$")] = Field(description="Over the digests.")

    def altered(self) -> list[str]:
        """Fields that are not what was signed."""
        now = self.digests()
        return sorted(
            {*now, *self.digests_signed} - {name for name in now if self.digests_signed.get(name) == now[name]}
        )


def canonical(value: Any) -> bytes:
    """JSON as every machine writes it: keys in order, no white space."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def digest_of(value: Any) -> str:
    return hashlib.sha256(canonical(value)).hexdigest()


def digest_of_text(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def signed_bytes(digests: Mapping[str, str]) -> bytes:
    """What the signature is over; the prefix keeps it from ever being taken for one over something else."""
    return FORMAT.encode() + b"\0" + canonical(dict(digests))

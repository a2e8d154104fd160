"""From an answer that was just given to its receipt."""

from __future__ import annotations

import datetime as dt
import platform
from functools import cache
from importlib.metadata import version
from typing import Any

from service.answering.answer import Made
from service.answering.passages import Passage
from service.engine.async_engine import AsyncEngine
from service.receipts.receipt import (
    FORMAT,
    CitationRecord,
    Maker,
    PassageRecord,
    Receipt,
    ReceiptBody,
    SamplingRecord,
    digest_of,
    digest_of_text,
    signed_bytes,
)
from service.receipts.signing import Signer

SOFTWARE = ("folio-serve", "torch", "transformers", "tokenizers", "numpy")
"""Whose versions may change a token."""


class ReceiptMaker:
    """Makes the receipts of one model and one database. Blocks; for threads."""

    def __init__(self, engine: AsyncEngine, model_name: str, signer: Signer) -> None:
        """model_name: as the API lists it, never a path of this machine."""
        self.signer = signer
        self._engine = engine
        self._model_name = model_name

    def __call__(self, made: Made) -> dict[str, Any]:
        """The receipt as JSON."""
        return self.signed(self.body(made)).model_dump(mode="json")

    def signed(self, body: ReceiptBody) -> Receipt:
        digests = body.digests()
        signature = self.signer.sign(signed_bytes(digests))
        return Receipt(**body.content(), digests_signed=digests, key=self.signer.public, signature=signature)

    def body(self, made: Made) -> ReceiptBody:
        evidence = made.evidence
        files = {passage.document: passage.content for passage in evidence.passages}
        turns = made.question.history
        return ReceiptBody(
            format=FORMAT,
            made_at=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
            question=evidence.prompt.question if evidence.prompt is not None else made.question.text,
            history=turns[len(turns) - evidence.turns :],
            instructions=made.question.instructions,
            mode="long" if evidence.mode == "long" else "retrieval",
            maker=self.maker(made.params.attention),
            sampling=SamplingRecord(**{name: getattr(made.params, name) for name in SamplingRecord.model_fields}),
            generation=evidence.generation,
            passages=tuple(passage_record(passage) for passage in evidence.passages),
            likely=evidence.likely,
            prompt=digest_of(evidence.prompt.ids) if evidence.prompt is not None else None,
            prompt_tokens=len(evidence.prompt.ids) if evidence.prompt is not None else 0,
            token_ids=tuple(made.token_ids),
            finish_reason=made.finish_reason,
            answer=made.answer,
            refused=made.refused,
            citations=tuple(
                CitationRecord(
                    document=citation.span.document,
                    file=files.get(citation.span.document, ""),
                    start=citation.span.start,
                    end=citation.span.end,
                    sha256=digest_of_text(citation.span.cited_text),
                    claim=number,
                    support=claim.judged.support,
                )
                for number, claim in enumerate(made.claims)
                for citation in claim.citations
            ),
        )

    def maker(self, attention: str | None) -> Maker:
        """What computes here now.

        attention: the policy that the request names, None for the engine's default.
        """
        loaded, config = self._engine.engine.loaded, self._engine.engine.config
        return Maker(
            name=self._model_name,
            fingerprint=loaded.fingerprint,
            tokenizer=loaded.tokenizer_fingerprint or "",
            device=config.device.partition(":")[0],
            dtype=config.dtype,
            weights=loaded.weights,
            kv_dtype=config.kv_dtype,
            batch_invariant=config.batch_invariant,
            attention=attention or config.attention,
            kernels=kernels() if config.device == "cpu" else "",
            software=software(),
        )


def passage_record(passage: Passage) -> PassageRecord:
    return PassageRecord(
        document=passage.document,
        name=passage.name,
        file=passage.content,
        start=passage.start,
        end=passage.end,
        page=passage.page,
        sha256=digest_of_text(passage.text),
        context=passage.context,
    )


@cache
def kernels() -> str:
    """Names the CPU kernels of this machine; empty where it has no compiler to build them with."""
    from sparse_attn.kernels.cpu import build, features

    try:
        return f"{features.family()} {build.identity()}"
    except (build.BuildError, ValueError):
        return ""


@cache
def software() -> dict[str, str]:
    return {name: version(name) for name in SOFTWARE} | {"python": platform.python_version()}

"""`POST /v1/receipts/verify`: make the answer of a receipt again, and say what differs."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field

from service.api.auth import Reader
from service.api.errors import problems
from service.api.health import Parts
from service.api.waiting import unless_gone
from service.receipts.receipt import Receipt
from service.receipts.verifying import Outcome, Seal, State, Verifier

router = APIRouter(tags=["answers"])


class VerdictModel(BaseModel):
    """What came out."""

    ok: bool = Field(description="It is genuine, and the answer comes out again as far as that is promised.")
    current: bool = Field(description="What was read and cited still stands in the documents as they are now.")
    says: str = Field(description="One line: what differs, or that nothing does.")
    seal: Seal = Field(description="genuine, altered since it was signed, or signed by another installation.")
    altered: list[str] = Field(description="Fields that are not what was signed.")
    guarantee: str = Field(description="exact: the same tokens are promised; text: they are not, for what `differs`.")
    differs: list[str]
    tokens: Outcome
    text: Outcome
    passages: list[State] = Field(description="Of each passage: stored, changed since, or gone (or not the caller's).")
    citations: list[State]


@router.post("/v1/receipts/verify", response_model=VerdictModel, responses=problems(504))
async def verify_receipt(body: Receipt, request: Request, runtime: Parts, principal: Reader) -> dict[str, Any]:
    """Check the signature, look for passages and citations among the caller's documents, and answer once more."""
    verifier = Verifier(runtime.library, runtime.answerer, runtime.receipts, principal.owner)
    return asdict(await unless_gone(request.receive, verifier.verify(body)))

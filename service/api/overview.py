"""What a document is about: `/v1/documents/{document}/summary`, and `/questions` that it answers."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, Field

from service.answering.question import Sampling
from service.answering.suggestions import suggestions
from service.answering.summary import summary
from service.api.answer import CitationModel, ClaimModel
from service.api.auth import Reader
from service.api.documents import DocumentPath
from service.api.errors import problems
from service.api.health import Parts
from service.api.waiting import unless_gone

router = APIRouter(tags=["documents"])


class SummaryModel(BaseModel):
    """A few sentences for a document, each with its support."""

    document: str
    version: int
    text: str
    written: bool = Field(description="By the model; else the sentences are the document's own.")
    claims: list[ClaimModel]
    citations: list[CitationModel]
    chars: int
    read_chars: int = Field(description="How many of `chars` were looked at.")
    left_out: int = Field(description="Sentences of the model that the document does not support.")
    note: str | None


class SuggestionModel(BaseModel):
    """A question whose answer is verified."""

    question: str
    answer: str
    citations: list[CitationModel]


class SuggestionList(BaseModel):
    """Questions that the document answers."""

    questions: list[SuggestionModel]


@router.get("/v1/documents/{document}/summary", response_model=SummaryModel, responses=problems(404, 504))
async def summarise(
    document: DocumentPath,
    request: Request,
    runtime: Parts,
    principal: Reader,
    sentences: Annotated[int, Query(ge=1, le=20, description="At most.")] = 5,
) -> dict[str, Any]:
    """What the document says, in a few sentences that it supports; the embedded reader's are its own."""
    writing = summary(runtime.answerer, document, principal.owner, sentences)
    return asdict(await unless_gone(request.receive, writing))


@router.get("/v1/documents/{document}/questions", response_model=SuggestionList, responses=problems(404, 504))
async def suggest_questions(
    document: DocumentPath,
    request: Request,
    runtime: Parts,
    principal: Reader,
    limit: Annotated[int, Query(ge=1, le=10)] = 5,
) -> dict[str, Any]:
    """Questions that the document answers: each was asked, and its answer is verified. English texts only."""
    params = Sampling().params(runtime.answerer.answer_tokens, runtime.engine.sampling_defaults)
    asking = suggestions(runtime.answerer, document, principal.owner, params, limit)
    return {"questions": [asdict(one) for one in await unless_gone(request.receive, asking)]}

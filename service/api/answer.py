"""`POST /v1/answer`: an answer with checked citations, as JSON or as a stream of events."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import asdict
from typing import Annotated, Any, Literal

import structlog
from fastapi import APIRouter, Header, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from service.accounts.idempotency import Idempotency
from service.answering.answer import Event, Question, collect, error_data
from service.api.auth import Reader
from service.api.documents import BoxModel
from service.api.errors import problems
from service.api.fields import CollectionName, DocumentId, Iterative, Knn, Text
from service.api.health import Parts
from service.api.search import Passage
from service.api.sse import EventStream, event, first_item, unless_gone
from service.engine.request import SamplingParams
from service.errors import FolioError
from service.settings import Settings

log = structlog.get_logger(__name__)
router = APIRouter(tags=["answers"])


class AnswerRequest(BaseModel):
    """A question and how to answer it."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    question: Text = Field(min_length=1, max_length=20_000)
    mode: Literal["auto", "long", "retrieval", "iterative"] = "auto"
    documents: list[DocumentId] = Field([], max_length=100, description="Ids; none for the whole collection.")
    collection: CollectionName | None = None
    passages: int | None = Field(None, ge=1, le=100, description="Passages to retrieve.")
    iterative: Iterative = Field(default_factory=Iterative, description="How mode iterative works.")
    knn: Knn | None = Field(None, description="Decode with the kNN datastore of the documents; null: without.")
    stream: bool = False
    max_tokens: int | None = Field(None, ge=1, le=65536)
    temperature: float = Field(0.0, ge=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    seed: int = Field(0, ge=0, lt=2**63)
    drafter: str | None = Field(None, max_length=255)
    attention: str | None = Field(None, max_length=255)

    def params(self, settings: Settings) -> SamplingParams:
        """Sampling as asked for, else as the settings say."""
        return SamplingParams(
            max_tokens=self.max_tokens or settings.answer_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            seed=self.seed,
            drafter=self.drafter,
            attention=self.attention,
        )


class CitationModel(BaseModel):
    """An exact span of the stored text that the answer cites."""

    document: str
    name: str
    start: int
    end: int
    page: int | None
    place: str = Field(description="Where in the file it stands: a page, a cell, a paragraph, a slide, a chapter.")
    cited_text: str
    verified: bool = Field(description="The stored characters start:end equal cited_text.")
    quoted: bool = Field(description="The answer repeats the words; else it refers to their passage.")
    label: int
    answer_start: int
    answer_end: int
    boxes: list[BoxModel] = Field(description="Where a verified passage is printed, for a PDF.")


class AnswerModel(BaseModel):
    """An answer."""

    answer: str
    mode: str
    mode_reason: str
    citations: list[CitationModel]
    unsupported: list[dict[str, Any]] = Field(description="Sentences of the answer without support.")
    results: list[Passage]
    note: str | None
    finish_reason: str | None
    stats: dict[str, Any]


@router.post(
    "/v1/answer",
    response_model=AnswerModel,
    responses={
        **problems(404, 409, 504),
        200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}},
    },
)
async def answer(
    body: AnswerRequest,
    request: Request,
    runtime: Parts,
    principal: Reader,
    idempotency_key: Annotated[str | None, Header(max_length=255)] = None,
) -> Response:
    """Answer a question over the caller's documents.

    With `stream`, or `Accept: text/event-stream`, the events search_results, message, citation, stats, error and
    done; else one JSON object.
    """
    question = Question(
        text=body.question,
        mode=body.mode,
        documents=tuple(body.documents),
        collection=body.collection,
        owner=principal.owner,
        passages=body.passages,
        iterative=body.iterative.options(),
        knn=body.knn.options() if body.knn is not None else None,
    )
    events = runtime.answerer.answer(question, body.params(runtime.settings))
    if body.stream or "text/event-stream" in request.headers.get("accept", ""):
        return EventStream(_encoded(await first_item(events)), runtime.settings.ping_s)

    async def whole() -> tuple[int, dict[str, Any]]:
        return 200, asdict(await unless_gone(request, collect(events)))

    if idempotency_key is None:
        status, content = await whole()
    else:
        idempotency: Idempotency = request.app.state.idempotency
        asked = json.dumps(body.model_dump(mode="json"), sort_keys=True).encode()
        status, content = await idempotency.once(principal.owner, idempotency_key, "answer", asked, whole)
    return JSONResponse(content, status)


async def _encoded(events: AsyncGenerator[Event, None]) -> AsyncGenerator[bytes, None]:
    """Events as server-sent events; what nobody foresaw becomes an error event without its text."""
    try:
        async with aclosing(events):
            async for one in events:
                yield event(one.data, one.type)
    except Exception as error:
        log.exception("answer broke off", exc_info=error)
        yield event(error_data(FolioError("Something went wrong here; the log says what.")), "error")
        yield event({"finish_reason": "error"}, "done")

"""`POST /v1/answer`: an answer with checked citations, as JSON or as a stream of events."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from service.accounts.idempotency import Idempotency
from service.answering.answer import Event, collect
from service.answering.question import Question, Sampling
from service.api.auth import Reader
from service.api.documents import BoxModel
from service.api.errors import problems
from service.api.health import Parts
from service.api.search import Passage
from service.api.sse import EventStream, event
from service.api.tracing import traced
from service.api.waiting import unless_gone
from service.errors import FolioError
from service.receipts.receipt import Receipt

router = APIRouter(tags=["answers"])


class AnswerRequest(Question, Sampling):
    """A question and how to answer it."""

    stream: bool = False
    receipt: bool = Field(
        default=False, description="Give a signed receipt, which /v1/receipts/verify makes the answer again from."
    )


class ClaimModel(BaseModel):
    """A sentence, item or cell of the answer, and whether the documents carry it."""

    start: int
    end: int
    text: str
    kind: Literal["sentence", "item", "cell"]
    support: Literal["verbatim", "attributed", "none"] = Field(
        description="verbatim: it is stored, whole; attributed: its citations carry every part of it; else none."
    )
    score: float = Field(description="How close the wording is, from 0 to 1.")


class CitationModel(BaseModel):
    """An exact span of the stored text that carries a claim of the answer."""

    document: str
    name: str
    start: int
    end: int
    page: int | None
    place: str = Field(description="Where in the file it stands: a page, a cell, a paragraph, a slide, a chapter.")
    cited_text: str
    verified: bool = Field(description="Its claim is supported, and the stored characters start:end equal cited_text.")
    support: Literal["verbatim", "attributed", "none"] = Field(description="The claim's; none if the store changed.")
    claim: int = Field(description="Which of the claims it carries, from 0.")
    quoted: bool = Field(description="The claim repeats the words; else it says the same.")
    label: int = Field(description="The passage's number in the prompt.")
    answer_start: int
    answer_end: int
    boxes: list[BoxModel] = Field(description="Where a verified passage is printed, for a PDF.")


class ReadModel(BaseModel):
    """A document that was read whole."""

    document: str
    name: str
    chars: int


class SearchedModel(BaseModel):
    """A search that was made."""

    query: str
    mode: Literal["hybrid", "dense", "sparse"]
    passages: int = Field(description="That it brought.")


class ConsideredModel(BaseModel):
    """A passage that came near."""

    document: str
    name: str
    start: int
    end: int
    page: int | None
    place: str
    score: float | None
    sentence: str = Field(description="Its surest sentence, by the ranker; else its beginning.")
    probability: float | None = Field(description="That this sentence answers; null where the ranker does not read it.")
    needed: float | None = Field(description="The probability that an answer needs.")
    why: str = Field(description="Why it did not carry.")


class ProofModel(BaseModel):
    """What stands behind a refusal."""

    read_whole: list[ReadModel]
    searches: list[SearchedModel]
    considered: list[ConsideredModel] = Field(description="The surest first.")
    wider: dict[str, Any] | None = Field(description="Fields to ask again with for a wider search; null: none is.")


class AnswerModel(BaseModel):
    """An answer."""

    answer: str
    refused: bool = Field(description="The answer says that the documents do not answer the question.")
    mode: str
    mode_reason: str
    query: str | None = Field(description="What was searched for, or asked of a model that follows no conversation.")
    verified: bool = Field(description="Every claim is verbatim or attributed, and there is one.")
    claims: list[ClaimModel]
    citations: list[CitationModel]
    results: list[Passage]
    note: str | None
    finish_reason: str | None
    stats: dict[str, Any]
    proof: ProofModel | None = Field(default=None, description="Of a refusal: what was read and searched, and why.")
    receipt: Receipt | None = None


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
    done (and receipt, where one is asked for); else one JSON object.
    """
    params = body.params(runtime.answerer.answer_tokens, runtime.engine.sampling_defaults)
    record = runtime.receipts if body.receipt else None
    events = traced(request, runtime.answerer.answer(body, params, principal.owner, record))
    if body.stream or "text/event-stream" in request.headers.get("accept", ""):
        return EventStream([events], AnswerEvents(), runtime.settings.ping_s)

    async def whole() -> tuple[int, dict[str, Any]]:
        return 200, asdict(await unless_gone(request.receive, collect(events)))

    if idempotency_key is None:
        status, content = await whole()
    else:
        idempotency: Idempotency = request.app.state.idempotency
        asked = json.dumps(body.model_dump(mode="json", by_alias=True), sort_keys=True).encode()
        status, content = await idempotency.once(principal.owner, idempotency_key, "answer", asked, whole)
    return JSONResponse(content, status)


class AnswerEvents:
    """The events of one answer, each by its name."""

    def begin(self) -> bytes:
        return b""

    def item(self, number: int, item: Event) -> bytes:
        return event(item.data, item.type)

    def end(self) -> bytes:
        return b""

    def failure(self, error: FolioError) -> bytes:
        return event(error.as_problem(), "error") + event({"finish_reason": "error"}, "done")

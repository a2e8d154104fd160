"""`POST /v1/search`: the passages that answer a query."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Literal

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from service.answering.passages import hit_data
from service.api.auth import Reader
from service.api.errors import problems
from service.api.health import Parts
from service.fields import CollectionName, DocumentId, Strict, Text

router = APIRouter(tags=["search"])


class SearchRequest(Strict):
    """What to look for, and where."""

    query: Text = Field(min_length=1, max_length=20_000)
    limit: int = Field(10, ge=1, le=100)
    mode: Literal["hybrid", "dense", "sparse"] = "hybrid"
    documents: list[DocumentId] = Field([], max_length=100)
    collection: CollectionName | None = None
    rerank: bool = Field(False, description="Let the ranker read the best; a score is then a probability.")


class Passage(BaseModel):
    """A chunk of a document; `text` is the stored text's slice `start:end`, `context` the headings above it."""

    chunk_id: int | None = None
    document: str
    name: str
    start: int
    end: int
    page: int | None
    place: str = ""
    context: str = ""
    score: float | None = None
    text: str | None = None


class SearchResponse(BaseModel):
    """Passages by falling score, and the number of the index generation that gave them.

    `note` says where the search was not made in the mode that was asked for.
    """

    results: list[Passage]
    generation: int
    note: str = ""


@router.post("/v1/search", response_model=SearchResponse, responses=problems(404))
async def search(body: SearchRequest, runtime: Parts, principal: Reader) -> Response:
    """Find passages in the caller's documents."""
    submit = partial(
        runtime.library.submit_search,
        body.query,
        k=body.limit,
        mode=body.mode,
        owner=principal.owner,
        collection=body.collection,
        documents=body.documents or None,
        rerank=body.rerank,
    )
    if body.rerank:  # which takes seconds: in the owner's turn
        found = await runtime.encoding.run(principal.owner, lambda: submit().result())
    else:
        found = await asyncio.wrap_future(submit())
    # A response of its own is sent as it is; FastAPI would build and check a model of every passage first.
    results = [hit_data(hit) for hit in found.hits]
    return JSONResponse({"results": results, "generation": found.generation, "note": found.note})

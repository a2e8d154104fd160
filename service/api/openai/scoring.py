"""`POST /v1/rerank`, as Cohere's and Jina's, and `POST /v1/score`, as vLLM's: the ranker by itself.

A score is the probability that a text answers the query: that of its best sentence.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Request
from pydantic import Field

from retrieval.embedding.encoding import Embedder
from retrieval.parsing.sentences import sentences
from retrieval.ranking.ranker import READ_CHARS, SentenceRanker
from service.api.auth import Reader
from service.api.errors import openai_problems
from service.api.health import Parts
from service.api.openai.lenient import Lenient, tell_unknown
from service.api.waiting import unless_gone
from service.errors import InvalidRequest, NotFound
from service.fields import Text
from service.runtime import Runtime

router = APIRouter(tags=["openai"])

MOST_TEXTS = 1000
MOST_CHARS = 1_000_000
"""Of all texts of one request: what is read takes about a second for 50,000."""

Query = Annotated[Text, Field(min_length=1, max_length=20_000)]


class TextDocument(Lenient):
    """A document as Cohere's client may send it."""

    text: Text


class RerankRequest(Lenient):
    """Body of `POST /v1/rerank`."""

    model: str | None = Field(None, max_length=255)
    query: Query
    documents: list[Text | TextDocument] = Field(min_length=1, max_length=MOST_TEXTS)
    top_n: int | None = Field(None, ge=0, lt=2**31, description="The best so many; null or 0 for all.")
    return_documents: bool = True


class ScoreRequest(Lenient):
    """Body of `POST /v1/score`: one text with each of several, or pairs."""

    model: str | None = Field(None, max_length=255)
    text_1: Query | Annotated[list[Query], Field(min_length=1, max_length=MOST_TEXTS)]
    text_2: Text | Annotated[list[Text], Field(min_length=1, max_length=MOST_TEXTS)]


@router.post("/rerank", include_in_schema=False)
@router.post("/v2/rerank", include_in_schema=False)
@router.post("/v1/rerank", responses=openai_problems(404))
async def rerank(body: RerankRequest, request: Request, runtime: Parts, principal: Reader) -> dict[str, Any]:
    """The documents by falling probability that they answer the query."""
    tell_unknown(request, body)
    texts = [one if isinstance(one, str) else one.text for one in body.documents]
    name, scores, tokens = await _scored(
        request, runtime, principal.owner, body.model, [body.query] * len(texts), texts
    )
    order = sorted(range(len(texts)), key=lambda n: -scores[n])[: body.top_n or None]
    results = [
        {"index": n, "relevance_score": scores[n]} | ({"document": {"text": texts[n]}} if body.return_documents else {})
        for n in order
    ]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    meta = {"api_version": {"version": "2"}}
    return {"id": f"rerank-{secrets.token_hex(12)}", "model": name, "results": results, "usage": usage, "meta": meta}


@router.post("/score", include_in_schema=False)
@router.post("/v1/score", responses=openai_problems(404))
async def score(body: ScoreRequest, request: Request, runtime: Parts, principal: Reader) -> dict[str, Any]:
    """The probability, for each pair, that the second text answers the first."""
    tell_unknown(request, body)
    texts = [body.text_2] if isinstance(body.text_2, str) else body.text_2
    queries = [body.text_1] if isinstance(body.text_1, str) else body.text_1
    queries = queries * len(texts) if len(queries) == 1 else queries
    if len(queries) != len(texts):
        raise InvalidRequest(
            f"There are {len(queries)} texts in text_1 and {len(texts)} in text_2.",
            hint="Give one in text_1, or as many as in text_2.",
            param="text_1",
        )
    name, scores, tokens = await _scored(request, runtime, principal.owner, body.model, queries, texts)
    return {
        "id": f"score-{secrets.token_hex(12)}",
        "object": "list",
        "created": int(time.time()),
        "model": name,
        "data": [{"index": n, "object": "score", "score": one} for n, one in enumerate(scores)],
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }


async def _scored(
    request: Request, runtime: Runtime, owner: str, model: str | None, queries: Sequence[str], texts: Sequence[str]
) -> tuple[str, list[float], int]:
    """`_scores`, in the owner's turn, and as long as the client waits."""
    scoring = runtime.encoding.run(owner, lambda: _scores(runtime, model, queries, texts))
    return await unless_gone(request.receive, scoring)


def _scores(
    runtime: Runtime, model: str | None, queries: Sequence[str], texts: Sequence[str]
) -> tuple[str, list[float], int]:
    """The ranker's name, the score of each pair, and the tokens of all. Raises NotFound for another ranker."""
    if sum(map(len, texts)) > MOST_CHARS:
        raise InvalidRequest(f"The texts have more than {MOST_CHARS:,} characters together.", hint="Send fewer.")
    ranker, embedder = runtime.library.ranker, runtime.library.embedder
    named = runtime.library.ranker_name
    if model not in (None, named, ranker.name):
        raise NotFound(
            f"The ranking model {model[:100]!r} does not exist here.",
            hint=f"This service has {named!r}.",
            param="model",
        )
    scores = [0.0] * len(texts)
    for query in dict.fromkeys(queries):
        own = [n for n, one in enumerate(queries) if one == query]
        for batch in _batches(own, texts):
            for n, probability in zip(batch, _probabilities(ranker, query, [texts[n] for n in batch]), strict=True):
                scores[n] = probability
    return named, scores, _count(embedder, [*dict.fromkeys(queries), *texts])


def _probabilities(ranker: SentenceRanker, query: str, texts: Sequence[str]) -> list[float]:
    split = [[text[start:end] for start, end in sentences(text)] for text in texts]
    return [float(one) for one in ranker.passages(query, split, texts)]


def _batches(numbers: Sequence[int], texts: Sequence[str]) -> Iterator[list[int]]:
    """So many at once as the ranker reads: beyond that it judges by words alone."""
    batch: list[int] = []
    room = READ_CHARS
    for n in numbers:
        if batch and len(texts[n]) > room:
            yield batch
            batch, room = [], READ_CHARS
        batch.append(n)
        room -= len(texts[n])
    if batch:
        yield batch


def _count(embedder: Embedder, texts: Sequence[str]) -> int:
    return sum(len(embedder.token_starts(text)) for text in texts)

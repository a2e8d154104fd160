"""`POST /v1/embeddings`: the library's own embedding model."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from retrieval.embedding.encoding import Embedder
from service.api.auth import Reader
from service.api.errors import openai_problems
from service.api.health import Parts
from service.api.openai.lenient import tell_unknown
from service.api.openai.schemas import EmbeddingRequest
from service.api.waiting import unless_gone
from service.errors import InvalidRequest, NotFound

router = APIRouter(tags=["openai"])

MOST_CHARS = 2_000_000


@router.post("/v1/embeddings", responses=openai_problems(404))
async def embeddings(body: EmbeddingRequest, request: Request, runtime: Parts, principal: Reader) -> Response:
    """Embeddings of one or several texts, or of token ids, each of norm 1."""
    tell_unknown(request, body)
    served = runtime.settings.embedder
    if body.model != served:
        raise NotFound(
            f"The embedding model {body.model[:100]!r} does not exist here.",
            hint=f"This service has {served!r}.",
            param="model",
        )
    embedder = runtime.library.embedder
    if body.dimensions not in (None, embedder.dim):
        raise InvalidRequest(
            f"{served!r} has {embedder.dim} dimensions and cannot be cut to {body.dimensions}.", param="dimensions"
        )

    def embed() -> Response:
        texts = _texts(embedder, body)
        chars = sum(map(len, texts))
        if chars > MOST_CHARS:
            raise InvalidRequest(
                f"The texts have {chars:,} characters; {MOST_CHARS:,} are embedded at once.", param="input"
            )
        tokens = sum(len(embedder.token_starts(text)) for text in texts)
        data = [
            {"object": "embedding", "index": i, "embedding": _encoded(vector, body.encoding_format)}
            for i, vector in enumerate(embedder.encode_documents(texts))
        ]
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return JSONResponse({"object": "list", "data": data, "model": served, "usage": usage})

    return await unless_gone(request.receive, runtime.encoding.run(principal.owner, embed))


def _texts(embedder: Embedder, body: EmbeddingRequest) -> list[str]:
    """What is to be embedded; of token ids the text that they stand for."""
    given: Any = [body.input] if isinstance(body.input, str) or isinstance(body.input[0], int) else body.input
    try:
        return [one if isinstance(one, str) else embedder.text(one) for one in given]
    except ValueError as error:
        raise InvalidRequest(
            f"The input holds token ids that are not the embedding model's: {error}.", param="input"
        ) from error


def _encoded(vector: np.ndarray, encoding: str) -> Any:
    """A vector as numbers, or as base64 of little-endian float32."""
    if encoding == "float":
        return [float(x) for x in vector]
    return base64.b64encode(np.asarray(vector, dtype="<f4").tobytes()).decode()

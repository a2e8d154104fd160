"""`POST /v1/embeddings`: the library's own embedding model."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
from fastapi import APIRouter, Request

from service.api.auth import Reader
from service.api.health import Parts
from service.api.openai.schemas import EmbeddingRequest
from service.api.waiting import unless_gone
from service.errors import InvalidRequest, NotFound

router = APIRouter(tags=["openai"])

MAX_CHARS = 2_000_000


@router.post("/v1/embeddings")
async def embeddings(body: EmbeddingRequest, request: Request, runtime: Parts, principal: Reader) -> dict[str, Any]:
    """Embeddings of one or several texts, each of norm 1."""
    served = runtime.settings.embedder
    if body.model != served:
        raise NotFound(
            f"The embedding model {body.model[:100]!r} does not exist here.",
            hint=f"This service has {served!r}.",
            param="model",
        )
    embedder = runtime.library.embedder
    if body.dimensions not in (None, embedder.dim):
        raise InvalidRequest(f"{served!r} has {embedder.dim} dimensions.", param="dimensions")
    texts = [body.input] if isinstance(body.input, str) else body.input
    chars = sum(map(len, texts))
    if chars > MAX_CHARS:
        raise InvalidRequest(f"The texts have {chars:,} characters; {MAX_CHARS:,} are embedded at once.", param="input")

    def embed() -> tuple[np.ndarray, int]:
        return embedder.encode_documents(texts), sum(len(embedder.token_starts(text)) for text in texts)

    vectors, tokens = await unless_gone(request.receive, runtime.encoding.run(principal.owner, embed))
    data = [
        {"object": "embedding", "index": i, "embedding": _encoded(vector, body.encoding_format)}
        for i, vector in enumerate(vectors)
    ]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return {"object": "list", "data": data, "model": served, "usage": usage}


def _encoded(vector: np.ndarray, encoding: str) -> Any:
    """A vector as numbers, or as base64 of little-endian float32."""
    if encoding == "float":
        return [float(x) for x in vector]
    return base64.b64encode(np.asarray(vector, dtype="<f4").tobytes()).decode()

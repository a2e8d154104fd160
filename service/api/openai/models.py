"""`GET /v1/models`."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from service.api.auth import Reader
from service.api.errors import openai_problems
from service.api.health import Parts
from service.api.openai.common import check_model
from service.runtime import Runtime

router = APIRouter(tags=["openai"])
MADE = 1735689600
"""`created` of a model: OpenAI's clients want a number; nothing is known of the real one."""


@router.get("/v1/models", responses=openai_problems())
def list_models(runtime: Parts, principal: Reader) -> dict[str, Any]:
    """The model that is served, and the one that embeds."""
    return {"object": "list", "data": [_chat_model(runtime), _model(runtime.settings.embedder)]}


@router.get("/v1/models/{name:path}", responses=openai_problems(404))
def get_model(name: str, runtime: Parts, principal: Reader) -> dict[str, Any]:
    """One model."""
    if name == runtime.settings.embedder:
        return _model(name)
    check_model(runtime, name)
    return _chat_model(runtime)


def _chat_model(runtime: Runtime) -> dict[str, Any]:
    engine = runtime.loaded
    if engine is None:
        return _model(runtime.model_name) | {"max_model_len": None, "sampling": None}
    sampling = engine.sampling_defaults.as_dict()
    return _model(runtime.model_name) | {"max_model_len": engine.window, "sampling": sampling}


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": MADE, "owned_by": "folio"}

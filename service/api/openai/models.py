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
    """The model that is served, the one that embeds, and the one that ranks; one that does both is one."""
    return {"object": "list", "data": _models(runtime)}


@router.get("/v1/models/{name:path}", responses=openai_problems(404))
def get_model(name: str, runtime: Parts, principal: Reader) -> dict[str, Any]:
    """One model."""
    served, *others = _models(runtime)
    for one in others:
        if one["id"] == name:
            return one
    check_model(runtime, name)
    return served


def _models(runtime: Runtime) -> list[dict[str, Any]]:
    """What each can do is its ``tasks``."""
    tasks: dict[str, list[str]] = {}
    for name, task in ((runtime.settings.embedder, "embed"), (runtime.library.ranker_name, "rank")):
        tasks.setdefault(name, []).append(task)
    return [_chat_model(runtime), *(_model(name, *own) for name, own in tasks.items())]


def _chat_model(runtime: Runtime) -> dict[str, Any]:
    engine, model = runtime.loaded, _model(runtime.model_name, "generate")
    if engine is None:
        return model | {"max_model_len": None, "sampling": None}
    return model | {"max_model_len": engine.window, "sampling": engine.sampling_defaults.as_dict()}


def _model(name: str, *tasks: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": MADE, "owned_by": "folio", "tasks": list(tasks)}

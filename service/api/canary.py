"""`/v1/canary`: how lossy answers agree with exact ones, and the way back for a policy that was withdrawn."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import BaseModel

from service.accounts.keys import Principal
from service.api.auth import Operator, require
from service.api.errors import problems
from service.api.health import Parts

router = APIRouter(tags=["operation"])


class ComparedPolicy(BaseModel):
    """What came of the answers of one attention policy that were compared."""

    answers: int
    same_answers: int
    tokens: int
    agreeing_tokens: int
    agreement: float
    regret_nats: float
    first_difference_median: int | None
    withdrawn: bool


class CanaryModel(BaseModel):
    """The share of lossy answers that is compared, the agreement that is asked of a policy, and what was found."""

    share: float
    bound: float
    skipped: int
    policies: dict[str, ComparedPolicy]


class TakenBack(BaseModel):
    """The policies that are in use again."""

    policies: list[str]


@router.get("/v1/canary", response_model=CanaryModel, responses=problems(503))
def show_canary(runtime: Parts, principal: Operator) -> dict[str, Any]:
    """How far lossy attention policies agree with the exact model, of all owners together."""
    engine = runtime.engine.engine
    stats = engine.stats()
    return {
        "share": engine.canary.share,
        "bound": engine.canary.bound,
        "skipped": stats["canary_skipped"],
        "policies": stats["canary"],
    }


@router.delete("/v1/canary", response_model=TakenBack, responses=problems(503))
async def reset_canary(runtime: Parts, principal: Annotated[Principal, require("admin")]) -> dict[str, Any]:
    """Let policies that were withdrawn be used again, and forget what was compared."""
    taken = runtime.engine.run(lambda engine: engine.canary.reset())
    return {"policies": await asyncio.wrap_future(taken)}

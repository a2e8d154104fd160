"""`/healthz`: the process is alive. `/readyz`, also as `/health` (vLLM's) and `/ping`: it takes requests.

Neither needs a thread, which others may hold.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response
from pydantic import BaseModel

from service.api.errors import problems
from service.runtime import Runtime, State

router = APIRouter(tags=["operation"])


async def runtime_of(request: Request) -> Runtime:
    """The parts of the service that this app runs."""
    runtime: Runtime = request.app.state.runtime
    return runtime


Parts = Annotated[Runtime, Depends(runtime_of)]


class Health(BaseModel):
    """State of the service."""

    status: str
    model: str
    detail: str | None = None


@router.get("/healthz", response_model=Health)
async def healthz(runtime: Parts) -> Health:
    """200 as long as the process answers."""
    return Health(status="alive", model=runtime.model_name)


class Version(BaseModel):
    """Of the package."""

    version: str


@router.get("/version", response_model=Version)
def show_version() -> Version:
    """Which Folio this is."""
    return Version(version=version("folio-serve"))


@router.get("/ping", response_model=Health, responses={**problems(), 503: {"model": Health}})
@router.get("/health", response_model=Health, responses={**problems(), 503: {"model": Health}})
@router.get("/readyz", response_model=Health, responses={**problems(), 503: {"model": Health}})
async def readyz(runtime: Parts, response: Response) -> Health:
    """200 when requests are taken; 503 while loading or draining, or when the model failed."""
    state = runtime.state
    if state is not State.READY:
        response.status_code = 503
        response.headers["Retry-After"] = "5"
    detail = runtime.failure.detail if runtime.failure else None
    return Health(status=str(state), model=runtime.model_name, detail=detail)

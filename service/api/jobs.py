"""`/v1/jobs`: what became of an upload."""

from __future__ import annotations

import datetime as dt
from typing import Annotated, Any

from fastapi import APIRouter, Path
from pydantic import BaseModel

from retrieval.types import Job
from service.api.auth import Reader, Writer
from service.api.errors import problems
from service.api.health import Parts

router = APIRouter(tags=["jobs"])

JobPath = Annotated[str, Path(max_length=64, pattern=r"^[A-Za-z0-9_-]+$")]


class JobDocument(BaseModel):
    """What became of one file of a job."""

    id: str | None
    name: str
    status: str
    pages: int
    chunks: int
    error: str | None
    notes: list[str] = []
    deduplicated: bool = False


class JobModel(BaseModel):
    """A background job: queued, running, done, failed or cancelled."""

    id: str
    kind: str
    status: str
    attempts: int
    progress: dict[str, Any]
    documents: list[JobDocument]
    error: str | None
    cancel_requested: bool
    created_at: dt.datetime
    updated_at: dt.datetime


@router.get("/v1/jobs/{job}", response_model=JobModel, responses=problems(404))
def show_job(job: JobPath, runtime: Parts, principal: Reader) -> dict[str, Any]:
    """How far a job is, and its documents once they are there."""
    return job_data(runtime.jobs.get(job, principal.owner))


@router.post("/v1/jobs/{job}/cancel", response_model=JobModel, responses=problems(404, 409))
def cancel_job(job: JobPath, runtime: Parts, principal: Writer) -> dict[str, Any]:
    """Ask a job to stop; documents that are committed stay."""
    return job_data(runtime.jobs.cancel(job, principal.owner))


def job_data(job: Job) -> dict[str, Any]:
    """A job as JSON."""
    documents = [{name: getattr(r, name) for name in JobDocument.model_fields} for r in job.results]
    plain = {name: getattr(job, name) for name in ("id", "kind", "status", "attempts", "progress", "error")}
    times = {"created_at": job.created_at.isoformat(), "updated_at": job.updated_at.isoformat()}
    return {**plain, **times, "documents": documents, "cancel_requested": job.cancel_requested}

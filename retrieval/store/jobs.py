"""The queue of background jobs. Every change of state is one transaction; a job is claimed under a lease.

A worker that dies leaves a job ``running`` with a lease that runs out (at once, where the worker was a process of
this machine that is gone); another worker then takes it up after the files that were already done. A file at which the
worker dies twice fails the job.
"""

from __future__ import annotations

import datetime as dt
import os
import secrets
import socket
from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa

from retrieval.errors import InvalidRequest, NotFound
from retrieval.store.tables import jobs, now
from retrieval.types import IngestResult, Job

LEASE = dt.timedelta(seconds=120)
RECEIPT = dt.timedelta(hours=1)
"""Longest time in which the files of a job are stored."""
MAX_ATTEMPTS = 3
MOST_NOTES = 5
"""of one of a job's files, which may be ten thousand; the document has more"""
DIED = "its worker died; it is tried once more"
RECEIVING = "receiving"
"""Its files are being stored; nobody was told of it yet."""
QUEUED, RUNNING, DONE, FAILED, CANCELLED = "queued", "running", "done", "failed", "cancelled"
FINISHED = (DONE, FAILED, CANCELLED)


# A container starts again as the same process number; the token tells the two apart.
_TOKEN = secrets.token_hex(4)


def holder() -> str:
    return f"{_host()}:{os.getpid()}:{_TOKEN}"


def _host() -> str:
    return socket.gethostname()[:40]


def insert(connection: sa.Connection, job: str, owner: str, kind: str, payload: dict[str, Any]) -> None:
    """A job whose files are yet to be stored, which ``enqueue`` is told afterwards."""
    connection.execute(
        sa.insert(jobs).values(
            id=job,
            owner=owner,
            kind=kind,
            payload=payload,
            status=RECEIVING,
            holder=holder(),
            expires_at=now() + RECEIPT,
            attempts=0,
            max_attempts=MAX_ATTEMPTS,
            run_after=now(),
            cancel_requested=False,
            progress={},
            results=[],
            created_at=now(),
            updated_at=now(),
        )
    )


def enqueue(connection: sa.Connection, job: str) -> None:
    """The files of a job are stored: any worker may take it."""
    _update(connection, job, status=QUEUED, holder=None, expires_at=None)


def forget(connection: sa.Connection, job: str) -> None:
    """Of a job whose files cannot be stored nothing is kept."""
    connection.execute(sa.delete(jobs).where(jobs.c.id == job))


def abandon(connection: sa.Connection) -> None:
    """Forget jobs whose files were never stored whole: whoever received them is gone."""
    for row in connection.execute(sa.select(jobs).where(jobs.c.status == RECEIVING)).all():
        if row.expires_at <= now() or _is_dead(row.holder):
            forget(connection, row.id)


def give_up(connection: sa.Connection, before: dt.datetime) -> None:
    """Of jobs that failed before that time the files are not kept any longer, nor counted."""
    failed = jobs.c.status == FAILED, jobs.c.updated_at < before
    for row in connection.execute(sa.select(jobs).where(*failed)).all():
        files = [{**file, "size": 0} for file in row.payload["files"]]
        if files != row.payload["files"]:
            payload = {**row.payload, "files": files}
            connection.execute(sa.update(jobs).where(jobs.c.id == row.id).values(payload=payload))


def get(connection: sa.Connection, owner: str, job: str) -> Job:
    """Error: NotFound."""
    row = connection.execute(sa.select(jobs).where(jobs.c.id == job, jobs.c.owner == owner)).one_or_none()
    if row is None:
        raise NotFound(f"there is no job {job!r}")
    return _job(row)


def listing(connection: sa.Connection, owner: str, limit: int) -> list[Job]:
    """Newest first."""
    query = sa.select(jobs).where(jobs.c.owner == owner, jobs.c.status != RECEIVING)
    query = query.order_by(jobs.c.created_at.desc(), jobs.c.id).limit(limit)
    return [_job(row) for row in connection.execute(query)]


def request_cancel(connection: sa.Connection, owner: str, job: str) -> Job:
    """A queued job is cancelled at once, a running one by its worker. Error: NotFound."""
    found = get(connection, owner, job)
    if found.status == QUEUED:
        _update(connection, job, status=CANCELLED, cancel_requested=True)
    elif found.status == RUNNING:
        _update(connection, job, cancel_requested=True)
    return get(connection, owner, job)


def retry(connection: sa.Connection, owner: str, job: str) -> Job:
    """Queue a failed job again; files already stored are recognised. Errors: NotFound, InvalidRequest."""
    found = get(connection, owner, job)
    if found.status != FAILED:
        raise InvalidRequest(f"job {job} is {found.status}; only a failed job can be tried again")
    _update(connection, job, status=QUEUED, attempts=0, run_after=now(), error=None, results=[])
    return get(connection, owner, job)


def claim(
    connection: sa.Connection, me: str, at_once: int | None = None, turns: Mapping[str, float] | None = None
) -> sa.Row | None:  # type: ignore[type-arg]
    """The next job that is due, now ``running`` and ours; None where there is none.

    Args:
        at_once: jobs of one owner that we run together, None for any number.
        turns: when each owner last had a turn; the one whose was the longest ago is next.
    """
    _release_orphans(connection)
    due = [jobs.c.status == QUEUED, jobs.c.run_after <= now()]
    if at_once is not None:
        held = sa.select(jobs.c.owner).where(jobs.c.status == RUNNING, jobs.c.holder == me)
        due.append(jobs.c.owner.not_in(held.group_by(jobs.c.owner).having(sa.func.count() >= at_once)))
    waiting = sa.select(jobs.c.owner, sa.func.min(jobs.c.created_at)).where(*due).group_by(jobs.c.owner)
    had = turns or {}
    owners = [(had.get(owner, 0.0), since, owner) for owner, since in connection.execute(waiting)]
    if not owners:
        return None
    mine = sa.select(jobs).where(*due, jobs.c.owner == min(owners)[2])
    row = connection.execute(mine.order_by(jobs.c.created_at, jobs.c.id).limit(1)).one()
    _update(connection, row.id, status=RUNNING, holder=me, expires_at=now() + LEASE, attempts=row.attempts + 1)
    return connection.execute(sa.select(jobs).where(jobs.c.id == row.id)).one()


def heartbeat(connection: sa.Connection, job: str, me: str, progress: dict[str, Any]) -> bool:
    """Prolong our lease. False when the job should stop: it was cancelled, or is no longer ours."""
    row = connection.execute(sa.select(jobs.c.cancel_requested, jobs.c.holder).where(jobs.c.id == job)).one_or_none()
    if row is None or row.cancel_requested or row.holder != me:
        return False
    _update(connection, job, expires_at=now() + LEASE, progress=progress)
    return True


def add_result(connection: sa.Connection, job: str, result: IngestResult) -> None:
    results = connection.execute(sa.select(jobs.c.results).where(jobs.c.id == job)).scalar_one()
    told = {**result.__dict__, "notes": result.notes[:MOST_NOTES]}
    _update(connection, job, results=[*results, told], error=None)


def replace_files(connection: sa.Connection, job: str, files: list[dict[str, Any]]) -> None:
    """Other files for a job, of which none is done."""
    payload = connection.execute(sa.select(jobs.c.payload).where(jobs.c.id == job)).scalar_one()
    _update(connection, job, payload={**payload, "files": files})


def finish(connection: sa.Connection, job: str, status: str, error: str | None = None) -> None:
    _update(connection, job, status=status, error=error, holder=None, expires_at=None, progress={})


def requeue(connection: sa.Connection, job: str, delay_s: float, attempts: int, error: str | None) -> None:
    after = now() + dt.timedelta(seconds=delay_s)
    _update(
        connection, job, status=QUEUED, run_after=after, attempts=attempts, error=error, holder=None, expires_at=None
    )


def unfinished(connection: sa.Connection) -> set[str]:
    return set(connection.execute(sa.select(jobs.c.id).where(jobs.c.status.not_in(FINISHED))).scalars())


def _release_orphans(connection: sa.Connection) -> None:
    for row in connection.execute(sa.select(jobs).where(jobs.c.status == RUNNING)).all():
        if row.expires_at > now() and not _is_dead(row.holder):
            continue
        if row.cancel_requested:
            finish(connection, row.id, CANCELLED)
        elif row.error == DIED:
            file = row.payload["files"][len(row.results)]["name"]
            finish(connection, row.id, FAILED, f"its worker died twice at {file}; submit the other files without it")
        elif row.attempts >= row.max_attempts:
            finish(connection, row.id, FAILED, f"given up after {row.attempts} attempts: the worker died at the last")
        else:
            requeue(connection, row.id, 0.0, row.attempts, DIED)


def _is_dead(who: str) -> bool:
    """Whether this is a process of this machine that is gone."""
    host, pid, token = who.rsplit(":", 2)
    if host != _host():
        return False
    if int(pid) == os.getpid():
        return token != _TOKEN
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def _update(connection: sa.Connection, job: str, **values: Any) -> None:
    connection.execute(sa.update(jobs).where(jobs.c.id == job).values(updated_at=now(), **values))


def _job(row: sa.Row) -> Job:  # type: ignore[type-arg]
    return Job(
        id=row.id,
        owner=row.owner,
        kind=row.kind,
        status=row.status,
        attempts=row.attempts,
        progress=row.progress,
        results=[IngestResult(**result) for result in row.results],
        error=row.error,
        cancel_requested=row.cancel_requested,
        created_at=row.created_at,
        updated_at=row.updated_at,
    )

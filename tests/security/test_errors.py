"""What an error tells: nothing of where the service keeps things, whoever raised it and wherever it is told."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa

from retrieval import errors
from retrieval.ingest.jobs import _told
from retrieval.store.tables import jobs, now
from service.errors import FolioError, StoreUnavailable, outward, translate

from ..service.api.conftest import make_engine, start_service  # noqa: F401
from ..service.conftest import tiny_model  # noqa: F401

PLACE = "postgresql+psycopg://folio@db.internal:5432/folio"
OF_THE_STORE = [
    errors.DiskFull(f"the disk of {PLACE} is full; free some space"),
    errors.StoreBusy(f"another process has kept {PLACE} locked for 10 s"),
    errors.StoreUnavailable(f"cannot open the database {PLACE}"),
    StoreUnavailable(f"{PLACE} is damaged"),
]


@pytest.mark.parametrize("error", OF_THE_STORE, ids=lambda error: type(error).__name__)
def test_nobody_elsewhere_is_told_where_the_database_lies(error: Exception) -> None:
    known, here = outward(error), translate(error)
    assert isinstance(known, StoreUnavailable)
    assert PLACE not in json.dumps(known.as_problem())
    assert here is not None
    assert PLACE in here.detail, "the command line says it"


def test_what_the_user_can_mend_is_told() -> None:
    told = outward(errors.StorageFull("delete documents"))
    assert isinstance(told, FolioError)
    assert told.detail == "Delete documents."
    assert outward(RuntimeError("/home/folio/x")) is None


@pytest.mark.parametrize("error", [*OF_THE_STORE[:3], OSError(28, "No space left on device", "/home/folio/files/ab")])
def test_a_job_does_not_tell_it_either(error: Exception) -> None:
    told = _told(error)
    assert told == "something went wrong here; the log says what"
    assert _told(errors.EmptyFile("a.txt has no words")) == "a.txt has no words"


def test_over_http(start_service: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    service = start_service()

    def broken(*_: Any, **__: Any) -> Any:
        raise OF_THE_STORE[0]

    monkeypatch.setattr(service.runtime.library, "documents", broken)
    answer = service.client.get("/v1/documents")
    assert answer.status_code == 503
    assert "cannot be reached at this moment" in answer.json()["detail"]
    assert PLACE not in answer.text
    row = {"id": "j", "owner": "local", "kind": "ingest", "status": "queued", "attempts": 2, "max_attempts": 3}
    row |= {"payload": {"collection": "default", "files": 7}, "progress": {}, "results": [], "cancel_requested": False}
    with service.runtime.library.database.write() as connection:
        connection.execute(sa.insert(jobs).values(**row, run_after=now(), created_at=now(), updated_at=now()))
    found = service.wait("j")
    assert (found["status"], found["error"]) == ("failed", "something went wrong here; the log says what")

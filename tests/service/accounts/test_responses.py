"""Responses are their owner's, for a while."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from retrieval.store.database import Database
from retrieval.store.tables import now, responses
from service.accounts import responses as module
from service.accounts.responses import ResponseStore
from service.errors import InvalidRequest, NotFound


@pytest.fixture
def database(tmp_path: Path) -> Any:
    database = Database(f"sqlite:///{tmp_path / 'folio.db'}")
    yield database
    database.close()


@pytest.fixture
def store(database: Database) -> ResponseStore:
    return ResponseStore(lambda: database, 30)


def body(number: str, previous: str | None = None) -> dict[str, Any]:
    return {"id": number, "previous_response_id": previous, "output": [{"said": number}]}


def test_a_conversation_is_its_responses_from_the_first_on(store: ResponseStore) -> None:
    store.keep("a", body("r1"), [{"asked": 1}])
    store.keep("a", body("r2", "r1"), [{"asked": 2}])
    store.keep("a", body("r2b", "r1"), [{"asked": 3}])
    assert store.conversation("a", "r2") == [{"asked": 1}, {"said": "r1"}, {"asked": 2}, {"said": "r2"}]
    assert store.items("a", "r2") == [{"asked": 2}]
    assert store.get("a", "r2") == body("r2", "r1")


def test_another_owner_finds_nothing(store: ResponseStore) -> None:
    store.keep("a", body("r1"), [])
    for read in (store.get, store.items, store.conversation, store.delete):
        with pytest.raises(NotFound, match="r1"):
            read("b", "r1")
    assert store.get("a", "r1")


def test_nothing_goes_on_from_what_was_deleted(store: ResponseStore) -> None:
    store.keep("a", body("r1"), [])
    store.keep("a", body("r2", "r1"), [])
    store.delete("a", "r1")
    with pytest.raises(NotFound, match="r1"):
        store.conversation("a", "r2")
    assert store.get("a", "r2")


def test_old_ones_are_dropped(store: ResponseStore, database: Database) -> None:
    store.keep("a", body("old"), [])
    with database.write() as connection:
        connection.execute(sa.update(responses).values(created_at=now() - dt.timedelta(days=31)))
    with pytest.raises(NotFound):
        store.get("a", "old")
    store.keep("b", body("new"), [])
    with database.read() as connection:
        assert connection.execute(sa.select(responses.c.id)).scalars().all() == ["new"]


def test_an_owner_keeps_so_many(store: ResponseStore, database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KEPT", 3)
    for number in range(5):
        store.keep("a", body(f"a{number}"), [])
    store.keep("b", body("b"), [])
    with database.read() as connection:
        assert connection.execute(sa.select(responses.c.id)).scalars().all() == ["a2", "a3", "a4", "b"]


def test_a_conversation_has_its_limits(store: ResponseStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.keep("a", body("r1"), [])
    store.keep("a", body("r2", "r1"), [])
    monkeypatch.setattr(module, "MOST_TURNS", 1)
    with pytest.raises(InvalidRequest, match="r2"):
        store.conversation("a", "r2")
    store.keep("a", body("many"), [{"asked": 1}] * module.MOST_ITEMS)
    with pytest.raises(InvalidRequest, match="items"):
        store.conversation("a", "many")


def test_what_is_kept_of_one_is_bounded(store: ResponseStore) -> None:
    store.check(body("r1"), [{"asked": "x" * 1000}])
    for large in ((body("x" * module.LARGEST), []), (body("r1"), [{"asked": "x" * module.LARGEST}])):
        with pytest.raises(InvalidRequest, match="bytes, over"):
            store.check(*large)

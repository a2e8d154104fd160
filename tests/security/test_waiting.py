"""Nobody waits for another: at the door, for threads, for a turn, or while one thread does somebody's work."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from retrieval.parsing import slices
from retrieval.parsing.document import Heading
from retrieval.parsing.limits import Limits
from retrieval.parsing.sandbox import Sandbox
from retrieval.store.database import Database
from retrieval.store.shelf import make_home
from retrieval.store.tables import watches
from service.accounts.keys import KeyStore
from service.api.auth import AuthMiddleware
from service.engine.loading.sampling_defaults import SamplingDefaults
from service.settings import load_settings
from service.watches import webhooks
from service.watches.changes import difference
from service.watches.store import WatchSpec, WatchStore
from service.watches.watching import Watcher

PATIENCE_S = 5.0


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    opened = Database.open(make_home(tmp_path / "home"))
    yield opened
    opened.close()


def door(database: Database, inner: Any) -> tuple[AuthMiddleware, dict[str, Any]]:
    """The service's door, and a request of Alice's, whose key is in the database."""
    keys = KeyStore(database, load_settings(home=Path("/nowhere")))
    secret = keys.create("alice", limits={"rate_per_minute": 60})[1]
    scope = {"type": "http", "path": "/new", "headers": [(b"authorization", f"Bearer {secret}".encode())]}
    return AuthMiddleware(inner, lambda: keys, ()), scope


@pytest.mark.parametrize("elsewhere", [False, True], ids=["here", "in another process"])
def test_who_asks_does_not_wait_for_anothers_large_file_to_be_written(database: Database, elsewhere: bool) -> None:
    let_in: list[float] = []

    async def inner(scope: Any, receive: Any, send: Any) -> None:
        let_in.append(time.monotonic())

    asking, scope = door(database, inner)
    writing, written = threading.Event(), threading.Event()
    other = Database(database.url) if elsewhere else database

    def write() -> None:
        with other.write():
            writing.set()
            written.wait(PATIENCE_S)

    writer = threading.Thread(target=write)
    writer.start()
    assert writing.wait(PATIENCE_S)
    began = time.monotonic()
    for _ in range(3):
        asyncio.run(asking(dict(scope), None, None))  # type: ignore[arg-type]
    still_writing = writer.is_alive() and not written.is_set()
    written.set()
    writer.join()
    assert still_writing
    assert len(let_in) == 3
    assert let_in[-1] - began < 3
    with database.write():  # and whoever writes next has his patience back
        pass


def test_who_asks_does_not_wait_for_threads_that_others_hold(database: Database) -> None:
    async def inner(scope: Any, receive: Any, send: Any) -> None:
        scope["in"].set()

    asking, scope = door(database, inner)
    release = threading.Event()

    async def ask() -> None:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
        held = asyncio.create_task(asyncio.to_thread(release.wait, 20))
        await asyncio.sleep(0.05)
        came = asyncio.Event()
        try:
            await asyncio.wait_for(asking({**scope, "in": came}, None, None), PATIENCE_S)  # type: ignore[arg-type]
        finally:
            release.set()
            await held
        assert came.is_set()

    asyncio.run(ask())


def test_a_name_that_nobody_answers_holds_no_thread_of_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    names: list[str] = []

    def looked_up(host: str, *_: Any, **__: Any) -> Any:
        names.append(threading.current_thread().name)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 443))]

    monkeypatch.setattr(socket, "getaddrinfo", looked_up)
    monkeypatch.setattr(webhooks, "PAUSES_S", (0.0,))
    told = asyncio.run(webhooks.deliver("https://slow.example/", "s", 1, {}, private=False))
    assert told == "slow.example leads to an address that is not public"
    assert names
    assert all(name.startswith("folio-names") for name in names)


def test_one_owner_never_holds_all_places_of_watched_questions(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bob has more watches than there are places, all older than Alice's."""
    store = WatchStore(lambda: database)
    for _ in range(20):
        store.add("bob", WatchSpec(question="What is new?"))
    store.add("alice", WatchSpec(question="What is new?"))
    asked: list[str] = []

    async def serve() -> None:
        watcher = Watcher(store, SimpleNamespace(), private=False)  # type: ignore[arg-type]

        async def check(watch: Any) -> None:
            asked.append(watch.owner)
            await asyncio.sleep(3600)

        monkeypatch.setattr(watcher, "check", check)
        serving = asyncio.create_task(watcher.serve())
        deadline = time.monotonic() + PATIENCE_S
        while "alice" not in asked and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)

    asyncio.run(serve())
    assert sorted(asked) == ["alice", "bob"]


def test_a_watched_question_that_fails_as_nobody_foresaw_has_that_for_its_answer(database: Database) -> None:
    """Else it would be asked again at once, for ever."""
    store = WatchStore(lambda: database)
    store.add("bob", WatchSpec(question="What is new?"))

    class Broken:
        answer_tokens = 8
        engine = SimpleNamespace(sampling_defaults=SamplingDefaults())

        def answer(self, *_: Any) -> Any:
            raise ZeroDivisionError

    async def check() -> None:
        watcher = Watcher(store, Broken(), private=False)  # type: ignore[arg-type]
        watch = store.claim(watcher.holder)
        assert watch is not None
        await watcher.check(watch)

    asyncio.run(check())
    [watch] = store.all("bob")
    assert watch.checked_at is not None
    assert watch.state is not None
    assert watch.state["answer"] == "Something went wrong here; the log says what."
    assert store.claim("another") is None
    with database.read() as connection:
        assert connection.execute(watches.select()).one().holder is None


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("a " * 2000, "a b " * 1000),
        ("a. " * 2000, "a. b. " * 1000),
        ("one two three. " * 400, "one three two. " * 400),
    ],
)
def test_the_difference_of_answers_that_say_the_same_over_and_over_takes_no_time(before: str, after: str) -> None:
    cited: dict[str, Any] = {"citations": []}
    began = time.process_time()
    found = difference({"answer": before, **cited}, {"answer": after, **cited})
    assert time.process_time() - began < 2
    assert found is not None
    assert "".join(run for how, run in found["words"] if how in "=-") == before
    assert "".join(run for how, run in found["words"] if how in "=+") == after


def test_what_only_goes_to_the_next_child_is_not_read_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of 600,000 headings: objects of them all, made in the service, were three seconds for everybody."""
    read: list[Any] = []
    loads = slices.json.loads
    monkeypatch.setattr(slices.json, "loads", lambda text: read.append(text) or loads(text))
    sandbox = Sandbox(Limits())
    try:
        parsed = sandbox.parse(b"## a\n\nword\n\n" * 30_000, "headings.md")
        texts = slices.sliced(parsed.headings)
        assert len(texts) == 3
        assert read
        assert not set(texts) & set(read)
        assert parsed.headings[1] == Heading(15, 16, 2)
        assert len(parsed.headings) == 30_000
        assert set(texts) <= set(read)
    finally:
        sandbox.close()


def test_scoring_and_exporting_wait_for_their_owners_turn() -> None:
    """What takes seconds of a thread is run by `Turns`, of which one owner never has all places."""
    from service.api import conversations, search, tables

    turns: list[tuple[str, str]] = []

    class Taken:
        def __init__(self, of: str) -> None:
            self.of = of

        async def run(self, owner: str, work: Callable[[], Any]) -> Any:
            turns.append((self.of, owner))
            raise asyncio.CancelledError

    runtime: Any = SimpleNamespace(
        encoding=Taken("encoding"),
        exporting=Taken("exporting"),
        library=SimpleNamespace(submit_search=lambda *_, **__: pytest.fail("not in turn")),
        tables=None,
        conversations=None,
    )
    bob: Any = SimpleNamespace(owner="bob")
    asked = search.SearchRequest(query="bridge", rerank=True)
    for work in (
        search.search(asked, runtime, bob),
        tables.export_table("t", runtime, bob),
        conversations.export_conversation("c", runtime, bob),
    ):
        with pytest.raises(asyncio.CancelledError):
            asyncio.run(work)
    assert turns == [("encoding", "bob"), ("exporting", "bob"), ("exporting", "bob")]

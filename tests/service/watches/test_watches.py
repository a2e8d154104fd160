"""Watched questions: asked again within seconds of a change, told what differs, each owner's own, erased."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from retrieval.library import Library
from retrieval.store.tables import watch_changes, watches
from service.watches import store as watch_store
from service.watches.changes import difference
from service.watches.store import WatchSpec, WatchStore

from ..api.conftest import make_engine, start_service  # noqa: F401
from .receiver import Receiver, receiver  # noqa: F401

BOOK = "The bridge at Hampton was built by Ada Miller in 1862.\n"
NEW = "The bridge at Hampton was built by Eve Potter in 1863.\n"
ASK = {"question": "Who built the bridge at Hampton?"}
PAUSE = watch_store.PAUSE


def reply(prompt: str) -> str:
    found = re.search(r"The bridge at Hampton [^.]*\.", prompt)
    return found[0] if found else "The documents do not say."


@pytest.fixture(scope="module")
def service(start_service: Callable[..., Any], make_scripted: Any) -> Any:  # noqa: F811
    return start_service(engine=make_scripted(reply), webhook_private=True)


def until(what: Callable[[], Any], seconds: float = 15.0) -> Any:
    """What it gives, once it gives something."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = what()
        if found:
            return found
        time.sleep(0.05)
    raise AssertionError("nothing came")


def watched(service: Any, headers: dict[str, str] | None = None, **more: Any) -> dict[str, Any]:
    """A watch, once its question was asked."""
    made = service.client.post("/v1/watches", json={**ASK, **more}, headers=headers)
    assert made.status_code == 201, made.text
    place = made.headers["location"]

    def asked() -> Any:
        found = service.client.get(place, headers=headers).json()
        return found if found["checked_at"] else None

    return made.json() | until(asked)


def changes(service: Any, watch: dict[str, Any], headers: dict[str, str] | None = None) -> list[dict[str, Any]]:
    return service.client.get(f"/v1/watches/{watch['id']}/changes", headers=headers).json()["changes"]


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch_store, "PAUSE", watch_store.dt.timedelta(0))


def test_a_new_version_is_noticed_within_two_seconds(service: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the pause as it is, where the watch has not just been looked at."""
    monkeypatch.setattr(watch_store, "PAUSE", PAUSE)
    document = service.ingest("quick.txt", BOOK.replace("1862", "1872").encode())["id"]
    watch = watched(service)
    with service.runtime.library.database.write_aside() as connection:
        earlier = watch_store.now() - PAUSE
        connection.execute(sa.update(watches).where(watches.c.id == watch["id"]).values(checked_at=earlier))
    service.ingest("quick.txt", NEW.replace("1863", "1873").encode())
    ready = time.monotonic()
    [change] = until(lambda: changes(service, watch))
    assert time.monotonic() - ready < 2
    assert change["after"]["answer"] == "The bridge at Hampton was built by Eve Potter in 1873."
    assert service.client.delete(f"/v1/watches/{watch['id']}").status_code == 204
    assert service.client.delete(f"/v1/documents/{document}").status_code == 204


def test_a_new_version_is_noticed_and_told_with_a_signature(service: Any, receiver: Receiver) -> None:  # noqa: F811
    document = service.ingest("bridge.txt", BOOK.encode())["id"]
    other = service.ingest("trees.txt", b"Limes were planted in 1903.\n")["id"]
    watch = watched(service, documents=[document], webhook=receiver.url)
    assert watch["answer"]["answer"] == BOOK.strip()
    service.ingest("trees.txt", b"Limes were planted in 1904.\n")
    service.ingest("bridge.txt", NEW.encode())
    [change] = until(lambda: changes(service, watch))
    assert [(one["document"], one["version"]) for one in change["documents"]] == [(document, 2)], f"not {other}"
    assert change["difference"]["words"] == [
        ["=", "The bridge at Hampton was built by "],
        ["-", "Ada Miller "],
        ["+", "Eve Potter "],
        ["=", "in "],
        ["-", "1862."],
        ["+", "1863."],
    ]
    assert [one["cited_text"] for one in change["difference"]["gone"]] == [BOOK.strip()]
    assert [one["cited_text"] for one in change["difference"]["new"]] == [NEW.strip()]
    [(headers, body)] = until(lambda: receiver.received)
    receiver.check(headers, body, watch["secret"])
    told = json.loads(body)
    assert (told["watch"], told["difference"]) == (watch["id"], change["difference"])
    assert until(lambda: changes(service, watch)[0]["delivery"] == "delivered")
    assert service.client.delete(f"/v1/watches/{watch['id']}").status_code == 204


def test_what_changes_nothing_is_no_change(service: Any) -> None:
    service.ingest("bridge.txt", NEW.encode())
    watch = watched(service)
    service.ingest("more.txt", b"A ferry crosses the lake.\n")
    until(lambda: service.client.get(f"/v1/watches/{watch['id']}").json()["checked_at"] > watch["checked_at"])
    assert changes(service, watch) == []


def test_a_deleted_document_takes_answers_and_changes_with_it(service: Any) -> None:
    document = service.ingest("deal.txt", b"The bridge at Hampton was sold to Tamsin Quellworthy.\n")["id"]
    watch = watched(service, documents=[document])
    service.ingest("deal.txt", b"The bridge at Hampton was given to Tamsin Quellworthy.\n")
    until(lambda: changes(service, watch))
    assert service.client.delete(f"/v1/documents/{document}").status_code == 204
    with service.runtime.library.database.read() as connection:
        for table in (watches, watch_changes):
            assert "Quellworthy" not in str(connection.execute(sa.select(table)).all())
    until(lambda: service.client.get(f"/v1/watches/{watch['id']}").json()["answer"])
    after = service.client.get(f"/v1/watches/{watch['id']}").json()["answer"]
    assert after["refused"]
    assert "Quellworthy" not in json.dumps([after, changes(service, watch)])


def test_nobody_else_sees_or_ends_it(start_service: Callable[..., Any], make_scripted: Any) -> None:  # noqa: F811
    service = start_service(engine=make_scripted(reply))
    keys = service.runtime.keys
    mine, theirs = ({"Authorization": f"Bearer {keys.create(name)[1]}"} for name in ("alice", "bob"))
    document = service.ingest("bridge.txt", BOOK.encode(), **mine)["id"]
    watch = watched(service, mine)
    place = f"/v1/watches/{watch['id']}"
    for method, path in [("GET", place), ("GET", f"{place}/changes"), ("DELETE", place)]:
        assert service.client.request(method, path, headers=theirs).status_code == 404
    assert service.client.get("/v1/watches", headers=theirs).json() == {"watches": []}
    assert service.client.post("/v1/watches", json={**ASK, "documents": [document]}, headers=theirs).status_code == 404
    assert watched(service, theirs)["answer"]["refused"], "of his own documents, which are none"
    assert "secret" not in service.client.get(place, headers=mine).json()
    inward = service.client.post("/v1/watches", json={**ASK, "webhook": "https://127.0.0.1/"}, headers=mine)
    assert (inward.status_code, inward.json()["param"]) == (400, "webhook")


def test_one_process_looks_at_a_time(home: Path) -> None:
    with Library.open(home) as library:
        store = WatchStore(lambda: library.database)
        made = store.add("local", WatchSpec(question="What?"))
        watch = store.claim("one")
        assert watch is not None
        assert watch.id == made.id
        assert store.claim("two") is None
        seen, touched = store.touched(watch)
        assert {one["name"] for one in touched} == {"bridge.txt", "trees.md"}
        about = store.add("local", WatchSpec(question="What?", documents=[touched[0]["document"]]))
        assert store.touched(about)[1] == touched[:1], "of what it is about alone"
        store.delete("local", about.id)
        state = {"answer": "a", "refused": False, "verified": False, "citations": [], "read": []}
        assert store.keep(watch, "one", seen, state) is None
        assert store.claim("two") is None, "nothing has changed"


def test_an_answer_that_a_delete_overtook_is_not_kept(home: Path) -> None:
    with Library.open(home) as library:
        store = WatchStore(lambda: library.database)
        store.add("local", WatchSpec(question="What?"))
        watch = store.claim("one")
        assert watch is not None
        document = library.documents()[0].id
        state = {"answer": "Ada", "refused": False, "verified": False, "citations": [], "read": [document]}
        library.delete(document)
        assert store.keep(watch, "one", 99, state, [], difference(None, state)) is None
        assert store.get("local", watch.id).state is None
        assert store.get("local", watch.id).seen == watch.seen, "so that it is asked again"


def test_changes_are_kept_up_to_a_number(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And nothing is kept for who holds the watch no longer."""
    monkeypatch.setattr(watch_store, "KEPT_CHANGES", 2)
    with Library.open(home) as library:
        store = WatchStore(lambda: library.database)
        watch = store.add("local", WatchSpec(question="What?"))
        for number in range(4):
            state = {"answer": str(number), "refused": False, "verified": False, "citations": [], "read": []}
            claimed = store.claim("one")
            assert claimed is not None
            store.keep(claimed, "two", 0, state, [], difference(None, state))
            store.keep(claimed, "one", 0, state, [], difference(None, state))
        assert [one.after["answer"] for one in store.changes("local", watch.id)] == ["3", "2"]
        monkeypatch.setattr(watch_store, "MOST_WATCHES", 1)
        with pytest.raises(watch_store.TooLarge, match="which is the limit"):
            store.add("local", WatchSpec(question="What?"))


def test_the_command_line_says_what_differs(
    folio: Callable[..., Any], home: Path, tmp_path: Path, scripted_commands: Callable[..., None]
) -> None:
    scripted_commands(reply)
    at = ("--home", home)
    code, out, said = folio(*at, "watch", "add", "Who built the bridge at Hampton?")
    assert code == 0, said
    number = out.strip()
    code, _, said = folio(*at, "watch", "run")
    assert (code, "Nothing became different." in said) == (0, True), said
    (tmp_path / "bridge.txt").write_text("The bridge at Hampton was built by Eve Potter in 1863. It has nine arches.\n")
    assert folio(*at, "ingest", tmp_path / "bridge.txt")[0] == 0
    code, out, said = folio(*at, "watch", "run")
    assert (code, "bridge.txt version 2" in out) == (0, True), (out, said)
    assert "Eve Potter" in out
    code, out, _ = folio(*at, "watch", "show", number, "--json")
    assert len(json.loads(out)["changes"]) == 1
    assert folio(*at, "watch", "ls")[1].count("Who built") == 1
    assert folio(*at, "watch", "add", "Q", "--webhook", "http://10.0.0.1/")[0] == 2
    assert folio(*at, "watch", "rm", number)[0] == 0
    assert folio(*at, "watch", "show", number)[0] == 1

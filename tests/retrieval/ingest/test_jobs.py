"""Background ingestion: acknowledged means kept, whoever dies."""

from __future__ import annotations

import datetime as dt
import threading
import time
from pathlib import Path

import pytest
import sqlalchemy as sa

from retrieval.errors import InvalidRequest, NotFound, StoreBusy
from retrieval.library import Library
from retrieval.store.tables import jobs, now
from retrieval.types import Upload

FILES = [Upload("a.txt", b"A swan drifted."), Upload("b.pdf", b"junk"), Upload("c.txt", b"A crow called.")]


def wait_for(library: Library, job: str, statuses: tuple[str, ...] = ("done", "failed", "cancelled")):
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        found = library.jobs.get(job, "local")
        if found.status in statuses:
            return found
        time.sleep(0.02)
    raise AssertionError(f"job is still {found}")


def test_a_worker_does_the_job_and_notes_each_file(library: Library) -> None:
    job = library.jobs.submit(FILES, "default", "local")
    assert job.status == "queued"
    library.jobs.start_worker()
    done = wait_for(library, job.id)
    assert done.status == "done"
    assert [(result.name, result.status) for result in done.results] == [
        ("a.txt", "ready"), ("b.pdf", "failed"), ("c.txt", "ready")
    ]  # fmt: skip
    assert "b.pdf" in str(done.error)
    assert {hit.name for hit in library.search("swan crow").hits} == {"a.txt", "c.txt"}
    library.jobs.stop_worker()
    assert not (library.home / "uploads" / job.id).exists()


def test_a_job_of_a_dead_worker_is_resumed_after_the_files_done(library: Library) -> None:
    job = library.jobs.submit(FILES, "default", "local")
    real = library.jobs._ingest_one
    seen: list[str] = []

    def dies_at_the_third(source, *rest):
        if source.name == "c.txt" and not seen:
            seen.append(source.name)
            raise SystemExit
        return real(source, *rest)

    library.jobs._ingest_one = dies_at_the_third
    with pytest.raises(SystemExit):
        library.jobs.run_next()
    assert library.jobs.get(job.id, "local").status == "running"
    assert not library.jobs.run_next(), "a live worker's job must not be taken"
    with library.database.write() as connection:
        connection.execute(sa.update(jobs).values(expires_at=now() - dt.timedelta(seconds=1)))
    assert library.jobs.run_next()
    done = library.jobs.get(job.id, "local")
    assert (done.status, done.attempts) == ("done", 2)
    assert [result.name for result in done.results] == ["a.txt", "b.pdf", "c.txt"]


def killed(library: Library) -> None:
    """The worker dies over its job, and its lease runs out."""
    with pytest.raises(SystemExit):
        library.jobs.run_next()
    with library.database.write() as connection:
        connection.execute(sa.update(jobs).values(expires_at=now() - dt.timedelta(seconds=1)))


def test_a_file_that_kills_its_worker_twice_is_not_taken_again(library: Library) -> None:
    job = library.jobs.submit([FILES[0], FILES[2]], "default", "local")
    real = library.jobs._ingest_one
    seen: list[str] = []

    def dies_at_the_second(source, *rest):
        seen.append(source.name)
        if source.name == "c.txt":
            raise SystemExit
        return real(source, *rest)

    library.jobs._ingest_one = dies_at_the_second
    killed(library)
    killed(library)
    assert not library.jobs.run_next()
    failed = library.jobs.get(job.id, "local")
    assert (failed.status, failed.error) == (
        "failed",
        "its worker died twice at c.txt; submit the other files without it",
    )
    assert seen == ["a.txt", "c.txt", "c.txt"]
    assert library.search("swan").hits


def test_a_death_at_another_file_is_counted_anew(library: Library) -> None:
    """Two restarts of the machine during one long job are no fault of a file."""
    job = library.jobs.submit([FILES[0], FILES[2]], "default", "local")
    real = library.jobs._ingest_one
    seen: list[str] = []

    def dies_once_at_each(source, *rest):
        if source.name not in seen:
            seen.append(source.name)
            raise SystemExit
        return real(source, *rest)

    library.jobs._ingest_one = dies_once_at_each
    killed(library)
    killed(library)
    assert library.jobs.run_next()
    assert library.jobs.get(job.id, "local").status == "done"


def test_a_job_that_kills_every_worker_is_given_up(library: Library) -> None:
    job = library.jobs.submit(FILES[:1], "default", "local")
    with library.database.write() as connection:
        connection.execute(sa.update(jobs).values(status="running", holder="elsewhere:1:x", attempts=3))
        connection.execute(sa.update(jobs).values(expires_at=now() - dt.timedelta(seconds=1)))
    assert not library.jobs.run_next()
    failed = library.jobs.get(job.id, "local")
    assert failed.status == "failed"
    assert "given up after 3 attempts" in str(failed.error)
    assert library.jobs.retry(job.id, "local").status == "queued"
    library.jobs.run_next()
    assert library.jobs.get(job.id, "local").status == "done"


def test_cancel_queued_and_running(library: Library) -> None:
    queued = library.jobs.submit(FILES, "default", "local")
    assert library.jobs.cancel(queued.id, "local").status == "cancelled"
    assert not library.jobs.run_next()
    running = library.jobs.submit(FILES, "default", "local")
    real = library.jobs._ingest_one

    def cancelled_meanwhile(source, collection, owner, progress, should_stop):
        if source.name == "c.txt":
            library.jobs.cancel(running.id, "local")
            time.sleep(1.1)  # the worker asks about once a second
        return real(source, collection, owner, progress, should_stop)

    library.jobs._ingest_one = cancelled_meanwhile
    library.jobs.run_next()
    found = library.jobs.get(running.id, "local")
    assert found.status == "cancelled"
    assert [result.name for result in found.results] == ["a.txt", "b.pdf"]
    with pytest.raises(InvalidRequest, match="only a failed job"):
        library.jobs.retry(running.id, "local")


def test_a_failing_job_is_tried_again_with_growing_delay(library: Library) -> None:
    job = library.jobs.submit(FILES[:1], "default", "local")

    def breaks(*_):
        raise OSError("disk on fire")

    library.jobs._ingest_one = breaks
    for attempt in (1, 2, 3):
        assert library.jobs.run_next()
        found = library.jobs.get(job.id, "local")
        assert (found.attempts, found.status) == (attempt, "failed" if attempt == 3 else "queued")
        assert not library.jobs.run_next(), "not before its delay is over"
        with library.database.write() as connection:
            connection.execute(sa.update(jobs).values(run_after=now()))
    assert library.jobs.get(job.id, "local").error == "something went wrong here; the log says what"


def test_a_busy_store_is_no_fault_of_the_job(library: Library) -> None:
    job = library.jobs.submit(FILES[:1], "default", "local")

    def busy(*_):
        raise StoreBusy("process 1 is writing")

    library.jobs._ingest_one = busy
    library.jobs.run_next()
    found = library.jobs.get(job.id, "local")
    assert (found.status, found.attempts) == ("queued", 0)


def test_jobs_of_others_do_not_exist(library: Library) -> None:
    job = library.jobs.submit(FILES[:1], "default", "ann")
    for call in (library.jobs.get, library.jobs.cancel, library.jobs.retry):
        with pytest.raises(NotFound):
            call(job.id, "bob")
    assert library.jobs.listing("bob", 10) == []
    assert [found.id for found in library.jobs.listing("ann", 10)] == [job.id]


def test_two_writers_at_once_get_one_clear_sentence(tmp_path: Path, embedder, open_library) -> None:
    with open_library(tmp_path, embedder) as one, open_library(tmp_path, embedder) as two:
        with (
            one._lease.hold("ingesting"),
            pytest.raises(StoreBusy, match=r"process \d+ on .* \(ingesting\) is writing"),
        ):
            two.ingest([Upload("a.txt", b"x y z")], wait_s=0)
        assert two.ingest([Upload("a.txt", b"x y z")], wait_s=0)[0].status == "ready"


def test_owners_take_turns(library: Library) -> None:
    order = ["bob", "bob", "bob", "ann", "ann"]
    submitted = [library.jobs.submit([Upload(f"{n}.txt", b"word %d" % n)], "default", owner)
                 for n, owner in enumerate(order)]  # fmt: skip
    seen: list[str] = []
    real = library.jobs._ingest_one
    library.jobs._ingest_one = lambda source, collection, owner, *rest: (
        seen.append(owner) or real(source, collection, owner, *rest)
    )
    while library.jobs.run_next():
        pass
    assert seen == ["bob", "ann", "bob", "ann", "bob"]
    assert all(library.jobs.get(job.id, owner).status == "done" for job, owner in zip(submitted, order, strict=True))


def test_one_owner_never_holds_all_workers(library: Library) -> None:
    """Bob's files take for ever; Ann's is done meanwhile."""
    go_on = threading.Event()
    real = library.jobs._ingest_one

    def slow(source, collection, owner, *rest):
        if owner == "bob":
            assert go_on.wait(20)
        return real(source, collection, owner, *rest)

    library.jobs._ingest_one = slow
    for number in range(3):
        library.jobs.submit([Upload(f"{number}.txt", b"word %d" % number)], "default", "bob")
    library.jobs.start_worker()
    time.sleep(1.2)
    job = library.jobs.submit([Upload("ann.txt", b"A swan drifted.")], "default", "ann")
    deadline = time.monotonic() + 10
    while library.jobs.get(job.id, "ann").status != "done":
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert sum(found.status == "running" for found in library.jobs.listing("bob", 10)) == 1
    go_on.set()
    library.jobs.stop_worker()


def test_the_right_to_write_is_held_for_the_commit_alone(library: Library, embedder) -> None:
    job = library.jobs.submit(FILES[:1], "default", "local")
    real, others = embedder.encode_documents, []

    def encodes(texts, advance=None):
        writing = threading.Thread(
            target=lambda: others.extend(library.ingest([Upload("b.txt", b"A crow.")], wait_s=0))
        )
        if not others:
            others.append("asked")
            writing.start()
            writing.join(10)
        return real(texts, advance)

    embedder.encode_documents = encodes
    try:
        assert library.jobs.run_next()
    finally:
        del embedder.encode_documents
    assert library.jobs.get(job.id, "local").status == "done"
    assert others[1].status == "ready"

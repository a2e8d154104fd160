"""What an owner may store counts all of it: every version, what waits, what a crash left behind."""

from __future__ import annotations

import datetime as dt
import io
import os
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from retrieval.common.failpoints import EXIT_CODE
from retrieval.errors import OversizedFile, StorageFull, StoreUnavailable
from retrieval.ingest import jobs as queue
from retrieval.library import Library
from retrieval.parsing.archives import check_archive
from retrieval.parsing.limits import Limits
from retrieval.store.jobs import RECEIVING
from retrieval.store.tables import jobs, now
from retrieval.store.usage import stored_bytes
from retrieval.types import Upload

from ..retrieval.conftest import WordEmbedder
from ..service.api.conftest import make_engine, start_service  # noqa: F401
from ..service.conftest import tiny_model  # noqa: F401


@pytest.fixture
def library(tmp_path: Path) -> Iterator[Library]:
    with Library.open(tmp_path / "home", embedder=WordEmbedder()) as opened:
        yield opened


def used(library: Library, owner: str = "ada") -> int:
    with library.database.read() as connection:
        return stored_bytes(connection, owner)


def text(size: int, word: str = "swan") -> bytes:
    return (f"{word} " * size)[:size].encode()


def test_every_version_counts_until_the_document_goes(library: Library) -> None:
    for number in range(3):
        library.ingest([Upload("a.txt", text(1000, f"swan{number}"))], owner="ada")
    assert used(library) == 3000
    assert used(library, "bob") == 0
    [document] = library.documents(owner="ada")
    assert document.version == 3
    library.delete(document.id, "ada")
    assert used(library) == 0


def test_what_waits_counts_and_is_refused_beyond_the_limit(library: Library) -> None:
    library.jobs.submit([Upload("a.txt", text(600))], "default", "ada", 1000)
    assert used(library) == 600
    with pytest.raises(StorageFull, match="are, earlier versions and what waits included"):
        library.jobs.submit([Upload("b.txt", text(600, "crow"))], "default", "ada", 1000)
    library.jobs.submit([Upload("b.txt", text(600, "crow"))], "default", "bob", 1000)
    assert used(library) == 600
    assert len(library.jobs.listing("ada", 10)) == 1
    assert library.jobs.run_next()
    assert used(library) == 600


def test_uploads_at_the_same_time_do_not_pass_together(library: Library) -> None:
    put = library.jobs._blobs.put
    barrier = threading.Barrier(4, timeout=20)

    def slowly(name: str, data: bytes) -> None:  # whoever was let in stores at the same time as the others
        barrier.wait()
        put(name, data)

    library.jobs._blobs.put = slowly  # type: ignore[method-assign]
    told: list[str] = []

    def upload(number: int) -> None:
        try:
            library.jobs.submit([Upload(f"{number}.txt", text(300, f"w{number}"))], "default", "ada", 1250)
            told.append("taken")
        except StorageFull:
            told.append("refused")

    threads = [threading.Thread(target=upload, args=(number,)) for number in range(9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(told) == ["refused"] * 5 + ["taken"] * 4
    assert used(library) == 1200


def test_an_upload_that_cannot_be_stored_leaves_nothing(library: Library) -> None:
    def fails(name: str, data: bytes) -> None:
        raise StoreUnavailable("the store is away")

    library.jobs._blobs.put = fails  # type: ignore[method-assign]
    with pytest.raises(StoreUnavailable):
        library.jobs.submit([Upload("a.txt", text(600))], "default", "ada", 1000)
    assert used(library) == 0


CRASH = """
import sys
sys.path.insert(0, {folder!r})
from conftest import WordEmbedder
from retrieval.library import Library
from retrieval.types import Upload
library = Library.open({home!r}, embedder=WordEmbedder())
library.jobs.submit([Upload("a.txt", b"swan " * 200)], "default", "ada")
"""


def test_what_a_crash_leaves_counts_until_it_is_swept(tmp_path: Path) -> None:
    home, folder = tmp_path / "home", Path(__file__).parents[1] / "retrieval"
    program = CRASH.format(folder=str(folder), home=str(home))
    environment = {**os.environ, "FOLIO_FAILPOINT": "job.uploaded"}
    assert subprocess.run([sys.executable, "-c", program], env=environment, check=False).returncode == EXIT_CODE
    (home / "files" / "ab").mkdir(parents=True)
    part, young = home / "files" / "ab" / ".abcd.1.tmp", home / "files" / "ab" / ".abce.2.tmp"
    part.write_bytes(b"half")
    young.write_bytes(b"half")
    [left] = (home / "uploads").glob("*/0")
    for path in (part, left):
        os.utime(path, (0, 0))
    with Library.open(home, embedder=WordEmbedder()) as library:
        assert used(library) == 1000
        assert library.jobs.listing("ada", 10) == []
        assert not library.jobs.run_next()
        library.compact()
        assert used(library) == 0
    assert not left.exists()
    assert not part.exists()
    assert young.exists(), "somebody may be writing it"


def test_the_worker_sweeps_when_it_starts(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    swept = threading.Event()
    monkeypatch.setattr(queue.JobQueue, "sweep", lambda self: swept.set())
    library.jobs.start_worker()
    assert swept.wait(20)


def test_files_of_a_failed_job_count_for_an_hour(library: Library) -> None:
    library.jobs.submit([Upload("a.pdf", b"%PDF-1.4 nothing " * 20)], "default", "ada")
    assert library.jobs.run_next()
    assert used(library) == 340
    with library.database.write() as connection:
        connection.execute(sa.update(jobs).values(updated_at=now() - dt.timedelta(hours=2)))
    library.jobs.sweep()
    assert used(library) == 0


def test_a_job_is_unknown_while_it_is_received(library: Library) -> None:
    seen: list[Any] = []
    put = library.jobs._blobs.put

    def looks(name: str, data: bytes) -> None:
        with library.database.read() as connection:
            seen.append(connection.execute(sa.select(jobs.c.status)).scalar_one())
        seen.append(library.jobs.run_next())
        put(name, data)

    library.jobs._blobs.put = looks  # type: ignore[method-assign]
    library.jobs.submit([Upload("a.txt", text(50))], "default", "ada")
    assert seen == [RECEIVING, False]


def archive(size: int) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("word/document.xml", b"a" * size)
    return out.getvalue()


def test_a_small_archive_may_be_as_dense_as_it_likes() -> None:
    dense = archive(600_000)
    assert len(dense) * Limits().zip_ratio < 600_000
    check_archive(dense, "letter.docx", Limits())


@pytest.mark.parametrize(("size", "limits"), [(20 << 20, Limits()), (3000, Limits(zip_small_bytes=2000, zip_ratio=2))])
def test_a_large_one_may_not(size: int, limits: Limits) -> None:
    with pytest.raises(OversizedFile, match="over the limit of"):
        check_archive(archive(size), "bomb.docx", limits)


def test_over_http(start_service: Callable[..., Any]) -> None:  # noqa: F811
    service = start_service()
    secret = service.runtime.keys.create("ada", limits={"storage_bytes": 1000})[1]
    key = {"Authorization": f"Bearer {secret}"}
    service.ingest("a.txt", text(400, "one"), **key)
    service.ingest("a.txt", text(400, "two"), **key)
    more = service.client.post("/v1/documents", files={"file": ("b.txt", text(300, "three"))}, headers=key)
    assert more.status_code == 413
    assert "earlier versions and what waits included" in more.json()["detail"]

"""What an owner may store counts all of it: every version, what waits, what a crash left behind."""

from __future__ import annotations

import asyncio
import datetime as dt
import io
import json
import os
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy as sa

from retrieval.common.failpoints import EXIT_CODE
from retrieval.errors import OversizedFile, StorageFull, StoreUnavailable
from retrieval.ingest import jobs as queue
from retrieval.library import Library
from retrieval.parsing import worker
from retrieval.parsing.archives import check_archive
from retrieval.parsing.document import ParsedDocument, shown_notes
from retrieval.parsing.limits import Limits
from retrieval.store.jobs import RECEIVING
from retrieval.store.tables import conversation_turns as turns
from retrieval.store.tables import conversations as conversation_table
from retrieval.store.tables import jobs, now
from retrieval.store.tables import responses as response_table
from retrieval.store.usage import stored_bytes
from retrieval.types import Page, Upload
from service.accounts import responses as response_store
from service.accounts.keys import Principal
from service.accounts.responses import ResponseStore
from service.api.conversations import read_turns
from service.conversations import store as conversation_store
from service.conversations.store import ConversationStore, Source, Turn
from service.errors import NotFound, TooLarge
from service.tables.columns import Column
from service.tables.filling import TableFiller
from service.tables.store import TableSpec, TableStore

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


def test_kept_conversations_and_responses_count(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    database = library.database
    conversations, responses = ConversationStore(lambda: database), ResponseStore(lambda: database, 30)
    kept = conversations.create("ada", "Bridges").id
    for ordinal in range(3):
        conversations.keep("ada", kept, ordinal, Turn(question="Who?", text="x" * 1000))
    assert 3000 < used(library) < 3500
    conversations.keep("ada", kept, 1, Turn(question="Who?", text="é" * 100))
    with database.read() as connection:
        [size] = connection.execute(sa.select(conversation_table.c.size)).scalars()
        stored = sum(map(len, connection.execute(sa.select(sa.cast(turns.c.content, sa.Text))).scalars()))
    assert used(library) == size == stored
    with pytest.raises(StorageFull, match="earlier versions and what waits"):
        conversations.keep("ada", kept, 2, Turn(question="Who?", text="x" * 1000), size + 500)
    assert used(library) == size, "what is refused leaves all as it was"
    monkeypatch.setattr(conversation_store, "MOST_KEPT_BYTES", size + 500)
    with pytest.raises(TooLarge, match="conversations are kept, which is the limit"):
        conversations.keep("ada", kept, 2, Turn(question="Who?", text="x" * 1000))
    assert len(conversations.turns("ada", kept)) == 2
    [hers] = library.ingest([Upload("a.txt", b"The bridge has seven arches.")], owner="ada")
    before = used(library)
    conversations.keep("ada", kept, 2, Turn(question="Who?", text="Ada.", citations=[Source(document=hers.id or "")]))
    library.delete(hers.id or "", "ada")
    assert used(library) == size < before, "a delete takes its turns out of the count"
    conversations.delete("ada", kept)
    assert used(library) == 0
    monkeypatch.setattr(response_store, "MOST_KEPT_BYTES", 2500)
    for number in range(4):
        body = {"id": f"r{number}", "previous_response_id": None, "output": ["x" * 1000]}
        responses.keep("ada", body, [{"asked": number}])
    with database.read() as connection:
        assert set(connection.execute(sa.select(response_table.c.id)).scalars()) == {"r2", "r3"}
    assert 2000 < used(library) < 2500
    assert used(library, "bob") == 0


def test_what_a_document_notes_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred documents are listed at once, and names of chapters, sheets and attachments are the file's own."""
    long = [f"chapter {number} ({'x' * 60_000}) was not read" for number in range(10_000)]
    kept = shown_notes(long)
    assert sum(map(len, kept)) < 32_000
    assert kept[-1] == "9900 more notes are left out"
    assert shown_notes(long[:1])[0].startswith("chapter 0 (xxx")
    assert shown_notes(["page 2 was not read"]) == ["page 2 was not read"]
    monkeypatch.setattr(worker, "parse", lambda *_: ParsedDocument("x", [Page(1, 0, 1)], "text/plain", long))
    assert worker._parse(b"x", "a.txt", Limits())[0]["notes"] == kept


def test_a_long_conversation_is_told_a_turn_at_a_time(library: Library) -> None:
    """And not read and written whole in the event loop."""
    conversations = ConversationStore(lambda: library.database)
    kept = conversations.create("ada", "Bridges").id
    said = [Turn(question=f"{number}?", text="ä, \u2028 and ü", results=[]) for number in range(3)]
    for ordinal, turn in enumerate(said):
        conversations.keep("ada", kept, ordinal, turn)
    runtime: Any = SimpleNamespace(conversations=conversations)
    response = read_turns(kept, runtime, Principal("ada"))

    async def pieces() -> list[str]:
        return [piece async for piece in response.body_iterator]

    found = asyncio.run(pieces())
    assert len(found) == 2 + len(said)
    assert json.loads("".join(found)) == {"turns": conversations.turns("ada", kept)}
    assert [Turn.model_validate(one) for one in conversations.turns("ada", kept)] == said
    with pytest.raises(NotFound):
        read_turns(kept, runtime, Principal("bob"))


def test_a_table_asks_so_much_at_most() -> None:
    with pytest.raises(ValueError, match="over 20,000"):
        TableSpec(columns=[Column(question="x" * 2000)] * 11)
    assert TableSpec(columns=[Column(question="x" * 2000)] * 10)


def test_a_conversation_that_is_gone_is_not_found(library: Library) -> None:
    conversations = ConversationStore(lambda: library.database)
    with pytest.raises(NotFound):
        conversations.keep("ada", "0123", 0, Turn(question="Who?", text="Ada."))


@pytest.mark.parametrize(
    "asked",
    [
        {"prompt": [5] * 2000, "prompt_logprobs": 20, "n": 16},
        {"prompt": [[5] * 2000] * 60, "prompt_logprobs": 5},
        {"prompt": [5] * 2000, "echo": True, "logprobs": 20, "n": 16, "max_tokens": 1},
        {"prompt": [5] * 10, "logprobs": 20, "n": 16, "max_tokens": 1900},
    ],
)
def test_a_response_of_millions_of_log_probabilities_is_refused(service: Any, asked: dict[str, Any]) -> None:
    """Gigabytes of memory, and seconds of the event loop, for one small request."""
    body = {"model": service.runtime.model_name, "max_tokens": 1, **asked}
    told = service.client.post("/v1/completions", json=body)
    assert told.status_code == 400, told.text[:200]
    assert "log-probabilities; a response holds 500,000" in told.json()["error"]["message"]
    few = {
        "model": service.runtime.model_name,
        "max_tokens": 2,
        "prompt": [5] * 40,
        "prompt_logprobs": 5,
        "logprobs": 5,
    }
    [choice] = service.client.post("/v1/completions", json=few).json()["choices"]
    assert len(choice["prompt_logprobs"]) == 40
    assert len(choice["logprobs"]["tokens"]) == 2


def test_a_chat_is_bounded_too(service: Any) -> None:
    messages = [{"role": "user", "content": "word " * 1500}]
    body = {"model": service.runtime.model_name, "messages": messages, "max_tokens": 1}
    told = service.client.post("/v1/chat/completions", json={**body, "n": 16, "prompt_logprobs": 20})
    assert told.status_code == 400, told.text[:200]
    assert "log-probabilities" in told.json()["error"]["message"]
    few = service.client.post("/v1/chat/completions", json={**body, "prompt_logprobs": 1, "logprobs": True})
    assert few.json()["prompt_logprobs"][0] is None
    assert few.json()["choices"][0]["logprobs"]["content"]


@pytest.mark.parametrize("digits", ["1" * 400 + ".5", "9" * 5000, "7" * 41])
def test_a_number_that_is_none_is_no_cell(digits: str) -> None:
    """Beyond 308 digits it is infinite, which no JSON has: the rows of the table could never be read again."""
    column = Column(question="How many?", type="number")
    assert column.read(f"There are {digits} of them.", written=False) is None
    assert column.read(f"{digits}\nThere are so many.", written=True) is None
    assert column.read(f"There are {digits} of them, and 12 of those.", written=False) == 12
    assert not column.stands_in(12, [f"There are {digits}."])


def test_a_row_at_which_the_filler_breaks_is_failed_and_not_asked_for_ever(library: Library) -> None:
    library.ingest([Upload("a.txt", b"The bridge has seven arches.")], owner="ada")
    store = TableStore(lambda: library.database)
    head = store.create("ada", TableSpec(columns=(Column(question="Who?"),) * 2), library.documents(owner="ada"))
    filler = TableFiller(store, SimpleNamespace(finder=SimpleNamespace(library=library)))  # type: ignore[arg-type]
    kept = store.keep
    broken: list[Any] = []

    def keep(table: str, ordinal: int, version: int, cells: Any) -> None:
        if not broken:
            broken.append(cells)
            raise sa.exc.DataError("INSERT", {}, ValueError("no JSON"))
        kept(table, ordinal, version, cells)

    async def fill() -> None:
        store.keep = keep  # type: ignore[method-assign]
        claimed = store.claim(filler.holder)
        assert claimed is not None
        await filler.fill(claimed)

    asyncio.run(fill())
    assert broken
    assert store.get("ada", head.id).status == "done"
    [row] = store.rows("ada", head.id)
    assert [cell["error"] for cell in row.cells or ()] == ["Something went wrong here; the log says what."] * 2
    assert store.claim("another") is None


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


@pytest.fixture(scope="module")
def service(start_service: Callable[..., Any]) -> Any:  # noqa: F811
    return start_service()


def test_over_http(start_service: Callable[..., Any]) -> None:  # noqa: F811
    service = start_service()
    secret = service.runtime.keys.create("ada", limits={"storage_bytes": 1000})[1]
    key = {"Authorization": f"Bearer {secret}"}
    service.ingest("a.txt", text(400, "one"), **key)
    service.ingest("a.txt", text(400, "two"), **key)
    more = service.client.post("/v1/documents", files={"file": ("b.txt", text(300, "three"))}, headers=key)
    assert more.status_code == 413
    assert "earlier versions and what waits included" in more.json()["detail"]

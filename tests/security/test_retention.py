"""What a delete promises: nothing finds the document, and nothing of it is left on the disk, in a file of any kind."""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa

from retrieval.index.token_store import CorpusTokenizer
from retrieval.knn.store import StoreBuilder, StoreIdentity
from retrieval.library import Library
from retrieval.store.tables import (
    answer_rows,
    conversation_turns,
    idempotency,
    index_generations,
    now,
    responses,
    watch_changes,
    watches,
)
from retrieval.traces import Needles, look_through, windows_of, windows_of_text
from retrieval.types import Upload
from service.accounts.idempotency import Idempotency
from service.accounts.responses import ResponseStore
from service.answering.retention import forget_deleted, made_of_deleted
from service.conversations.store import ConversationStore, Source, Turn
from service.settings import load_settings
from service.tables.columns import Column
from service.tables.store import TableSpec, TableStore
from service.watches.changes import difference
from service.watches.store import WatchSpec, WatchStore

from ..retrieval.conftest import WordEmbedder
from ..service.api.conftest import make_engine, start_service  # noqa: F401
from ..service.conftest import folio, tiny_model  # noqa: F401

WORDS = [
    "harbour",
    "quarterly",
    "Überweisung",
    "lanterns",
    "marmalade",
    "seventeen",
    "violinist",
    "\u6771\u4eac\u306e\u539f",
]


def secret(seed: int, words: int = 1200) -> str:
    """A text that no other holds a sentence of."""
    chance = random.Random(seed)
    made = [f"{chance.choice(WORDS)}{chance.getrandbits(40):x}" for _ in range(words)]
    return "\n\n".join(" ".join(made[at : at + 60]) + "." for at in range(0, words, 60))


@pytest.fixture
def library(tmp_path: Path) -> Iterator[Library]:
    with Library.open(tmp_path / "home", embedder=WordEmbedder()) as opened:
        opened.set_tokenizer(CorpusTokenizer("letters", lambda text: [ord(letter) for letter in text]))
        yield opened


def left(library: Library, name: str, text: str) -> set[str]:
    return {trace.path.partition("/")[0] for trace in library.traces(name, text.encode())}


def test_a_document_is_in_every_store_and_a_delete_leaves_it_in_none(library: Library) -> None:
    """What is looked for is found everywhere while the document is there, under another name for its bytes."""
    kept, gone = secret(1), secret(2)
    library.ingest([Upload("kept.txt", kept.encode()), Upload("gone.txt", gone.encode())])
    library.build_index()
    assert left(library, "gone.txt", gone) == set(), "what is there is no trace"
    [document] = [document for document in library.documents() if document.name == "gone.txt"]
    wanted = Needles([*windows_of_text(gone)])
    before = {trace.path.partition("/")[0] for trace in look_through(library.home, wanted)}
    assert "files" in before
    assert any(name.startswith("folio.db") for name in before)
    library.delete(document.id)
    after = left(library, "gone.txt", gone)
    assert after <= {"index"}, "the database, its log and the file are clean at once"
    assert after == {"index"}, "which the generations hold until the library is tidied"
    library.compact()
    assert left(library, "gone.txt", gone) == set()
    assert {hit.name for hit in library.search(gone.split()[5]).hits} <= {"kept.txt"}
    assert left(library, "kept.txt", kept) == set()


def test_every_kind_of_trace_is_recognised(library: Library) -> None:
    gone = secret(3)
    library.ingest([Upload("gone.txt", gone.encode()), Upload("kept.txt", secret(4).encode())])
    library.build_index()
    [document] = [document for document in library.documents() if document.name == "gone.txt"]
    library.delete(document.id)
    [generation] = [path for path in (library.home / "index").iterdir() if path.name.startswith("gen-")]
    found = {Path(trace.path).name for trace in library.traces("gone.txt", gone.encode())}
    assert found >= {"dense.faiss", "sparse.vocabulary.json"}
    assert {name for name in found if name.startswith("tokens")}, "the token store"
    assert generation.is_dir()
    for name, data in (
        ("half.part", gone.encode()[2000:2400]),
        ("answer.json", json.dumps({"answer": gone[500:900]}).encode()),
    ):
        (library.home / name).write_bytes(data)
        assert name in left(library, "gone.txt", gone)


def test_the_last_document_takes_the_generations_with_it(library: Library) -> None:
    library.ingest([Upload("gone.txt", secret(5).encode())])
    library.build_index()
    library.delete(library.documents()[0].id)
    library.compact()
    assert list((library.home / "index").glob("gen-*")) == []
    with library.database.read() as connection:
        assert connection.execute(sa.select(index_generations)).all() == []
    library.ingest([Upload("new.txt", secret(6).encode())])
    assert library.search(secret(6).split()[3]).hits
    assert library.verify_index().ok


def test_no_generation_is_kept_to_fall_back_on_that_holds_what_was_deleted(library: Library) -> None:
    for number in range(2):
        library.ingest([Upload(f"{number}.txt", secret(10 + number).encode())])
        library.build_index()
    assert len(list((library.home / "index").glob("gen-*"))) == 2
    library.delete(library.documents()[0].id)
    library.compact()
    assert len(list((library.home / "index").glob("gen-*"))) == 1
    assert library.verify_index().ok


def test_kept_responses_made_from_documents_go_and_what_went_on_from_them(library: Library) -> None:
    library.ingest([Upload("gone.txt", b"The bridge has seven arches.")])
    rows = [
        ("a", "local", None, {"folio": {"citations": []}}),
        ("b", "local", "a", {"folio": None}),
        ("c", "local", "b", {}),
        ("d", "local", None, {"output": 'says "folio": {"x"}'}),
        ("e", "bob", None, {"folio": {}}),
    ]
    with library.database.write() as connection:
        for number, owner, previous, body in rows:
            values = {"id": number, "owner": owner, "previous_id": previous, "input": [], "body": body}
            connection.execute(sa.insert(responses).values(**values, created_at=now()))
    library.delete(library.documents()[0].id)
    with library.database.read() as connection:
        assert set(connection.execute(sa.select(responses.c.id)).scalars()) == {"d", "e"}


def test_a_response_under_way_is_not_kept_where_it_may_repeat_what_was_deleted(library: Library) -> None:
    store = ResponseStore(lambda: library.database, 30)

    def body(number: str, previous: str | None = None, **more: Any) -> dict[str, Any]:
        return {"id": number, "previous_response_id": previous, "output": [], **more}

    library.ingest([Upload("gone.txt", b"The bridge has seven arches.")], owner="ada")
    library.ingest([Upload("bobs.txt", b"The bridge has six arches.")], owner="bob")
    before = {owner: store.last_delete(owner) for owner in ("ada", "bob")}
    store.keep("ada", body("read", folio={"citations": []}), [], before["ada"])
    [document] = library.documents(owner="ada")
    library.delete(document.id, "ada")
    store.keep("ada", body("late", folio={"citations": []}), [], before["ada"])
    store.keep("ada", body("after", "read"), [], before["ada"])
    store.keep("ada", body("plain"), [], before["ada"])
    store.keep("bob", body("bobs", folio={"citations": []}), [], before["bob"])
    with library.database.read() as connection:
        assert set(connection.execute(sa.select(responses.c.id)).scalars()) == {"plain", "bobs"}


def test_nothing_is_left_in_any_home(library: Library, tmp_path: Path) -> None:
    """Each place where words of a document are kept is filled, seen to hold them, and empty after the delete."""
    gone = secret(11)
    [result] = library.ingest([Upload("gone.txt", gone.encode())])
    [document] = [one for one in library.documents() if one.id == result.id]
    words, database = gone.split("\n\n")[3], library.database
    cited = {"document": document.id, "cited_text": words, "name": "gone.txt", "start": 0, "end": 9}
    state = {"answer": words, "refused": False, "verified": True, "citations": [cited], "read": [document.id]}
    tables, watched = TableStore(lambda: database), WatchStore(lambda: database)
    conversations, kept = ConversationStore(lambda: database), ResponseStore(lambda: database, 30)
    head = tables.create("local", TableSpec(columns=(Column(question="What?"),)), [document])
    tables.keep(head.id, 0, 1, [{"value": words, "citations": [cited], "error": None}])
    watched.add("local", WatchSpec(question="What?"))
    claimed = watched.claim("me")
    assert claimed is not None
    assert watched.keep(claimed, "me", 99, state, [cited], difference(None, state)) is not None
    conversation = conversations.create("local", "Talk")
    conversations.keep("local", conversation.id, 0, Turn(question="What?", text=words, citations=[Source(**cited)]))
    kept.keep("local", {"id": "r", "previous_response_id": None, "folio": {}, "output": [words]}, [{"asked": words}])
    keeper = Idempotency(lambda: database)

    async def answered() -> tuple[int, dict[str, Any]]:
        return 200, {"answer": words}

    asyncio.run(keeper.once("local", "key", "answer", b"", answered))
    library.build_index()
    homes = (answer_rows, watches, watch_changes, conversation_turns, responses, idempotency)

    def holding() -> set[str]:
        with database.read() as connection:
            found = {home.name: connection.execute(sa.select(home)).all() for home in homes}
        return {name for name, rows in found.items() if words in str([tuple(row) for row in rows])}

    assert holding() == {home.name for home in homes}
    settings = load_settings(home=library.home)
    warmed, datastore = library.home / "kv" / f"{document.id}.kv.safetensors", library.home / "knn" / "aa-1"
    warmed.parent.mkdir()
    warmed.write_bytes(b"kv")
    builder = StoreBuilder(datastore, StoreIdentity("model", "tokenizer", 4, 10))
    builder.add((document.id, 1), np.zeros((2, 4), np.float32), np.array([1, 2]))
    builder.finish()
    builder.close()
    assert made_of_deleted(library, settings) == []
    library.delete(document.id)
    assert holding() == set()
    assert set(made_of_deleted(library, settings)) == {warmed, datastore}
    forget_deleted(library, settings)
    library.compact()
    assert left(library, "gone.txt", gone) == set()
    assert made_of_deleted(library, settings) == []


def test_a_worker_tidies(library: Library) -> None:
    library.ingest([Upload("gone.txt", secret(7).encode()), Upload("kept.txt", secret(8).encode())])
    library.build_index()
    [document] = [document for document in library.documents() if document.name == "gone.txt"]
    library.delete(document.id)
    library._erasure.tidy()
    assert left(library, "gone.txt", secret(7)) == set()


def test_datastores_and_warmed_kv_go_with_any_of_their_documents(library: Library, tmp_path: Path) -> None:
    settings = load_settings(home=library.home)
    library.ingest([Upload("gone.txt", secret(1).encode()), Upload("kept.txt", secret(2).encode())])
    ids = {document.name: document.id for document in library.documents()}
    warmed = library.home / "kv"
    warmed.mkdir()
    for document in ids.values():
        (warmed / f"{document}.kv.safetensors").write_bytes(b"kv")
        (warmed / f"{document}.0000.passages.safetensors").write_bytes(b"kv")
    identity = StoreIdentity("model", "tokenizer", 4, 10)
    for name, documents, whole in (
        ("aa-1", ids.values(), True),
        ("bb-1", [ids["kept.txt"]], True),
        ("cc-1", ids.values(), False),
    ):
        builder = StoreBuilder(library.home / "knn" / name, identity)
        for document in documents:
            builder.add((document, 1), np.zeros((2, 4), np.float32), np.array([1, 2]))
        builder.finish() if whole else builder.commit()
        builder.close()
    assert forget_deleted(library, settings) == []
    library.delete(ids["gone.txt"])
    assert sorted(forget_deleted(library, settings)) == sorted(
        [f"{ids['gone.txt']}{kind}.safetensors" for kind in (".kv", ".0000.passages")] + ["aa-1", "tmp-cc-1"]
    )
    kept = sorted(f"{ids['kept.txt']}{kind}.safetensors" for kind in (".kv", ".0000.passages"))
    assert sorted(path.name for path in warmed.iterdir()) == kept
    assert {path.name for path in (library.home / "knn").iterdir() if path.is_dir()} == {"bb-1"}


def test_a_delete_over_http_takes_all_of_it(start_service: Callable[..., Any]) -> None:  # noqa: F811
    service = start_service()
    found = service.ingest("gone.txt", b"The bridge at Hampton was built by Ada Miller in 1862.")
    asked = {"question": "Who built the bridge?", "max_tokens": 8}
    assert service.client.post("/v1/answer", json=asked).status_code == 200
    engine = service.runtime.engine.engine
    assert len(engine.drafting.learned) == 1
    kept = service.runtime.settings.home / "kv"
    kept.mkdir(exist_ok=True)
    (kept / f"{found['id']}.kv.safetensors").write_bytes(b"kv")
    assert service.client.delete(f"/v1/documents/{found['id']}").status_code == 204
    service.runtime.engine.run(lambda engine: None).result(20)
    assert len(engine.drafting.learned) == 0
    assert list(kept.iterdir()) == []
    assert service.runtime.keys.audit_log(1)[0]["action"] == "document.delete"


FULL = """
import os, sys
from pathlib import Path
sys.path.insert(0, {folder!r})
from conftest import WordEmbedder
from retrieval.errors import DiskFull, StoreUnavailable
from retrieval.library import Library
from retrieval.types import Upload
from service.accounts.keys import KeyStore, note
from service.accounts.rates import RateLimiter
from service.settings import load_settings

home = Path({home!r})
library = Library.open(home, embedder=WordEmbedder())
for number in range(6):
    library.ingest([Upload(f"{{number}}.txt", (f"word{{number}} abcdefghij " * 15_000).encode())])
keys = KeyStore(library.database, load_settings(home=home))
secret = keys.create("local")[1]
library._erasure.tidy()
assert (home / "reserve").stat().st_size == 4 << 20
filler = os.open(home / "filler", os.O_CREAT | os.O_WRONLY)
for size in (1 << 20, 4096, 1):  # to the last byte
    try:
        while os.write(filler, bytes(size)):
            pass
    except OSError:
        pass
try:
    library.ingest([Upload("more.txt", b"more " * 200_000)])
    sys.exit("there was room")
except StoreUnavailable:
    pass
assert keys.principal(secret) is not None, "nobody is kept out"
limiter = RateLimiter(library.database)
assert limiter.take("x", 60.0) == 0.0
ids = {{document.name: document.id for document in library.documents()}}
noted = lambda connection: note(connection, "local", None, "document.delete", ids["0.txt"])
library.delete(ids["0.txt"], "local", noted)
assert ids["0.txt"] not in {{document.id for document in library.documents()}}
assert keys.audit_log(1)[0]["subject"] == ids["0.txt"]
assert "0.txt" not in {{hit.name for hit in library.search("word0").hits}}
os.close(filler)
(home / "filler").unlink()
library.compact()
assert library.verify_index().ok
assert not (home / "unscrubbed").exists()
assert not library.traces("0.txt", ("word0 abcdefghij " * 15_000).encode())
print("deleted")
"""


def test_a_delete_needs_no_space(tmp_path: Path) -> None:
    """On a file system of its own, full to the last byte."""
    folder, home = Path(__file__).parents[1] / "retrieval", tmp_path / "home"
    home.mkdir()
    program = tmp_path / "program.py"
    program.write_text(textwrap.dedent(FULL).format(folder=str(folder), home=str(home)))
    mounted = f"mount -t tmpfs -o size=64m none {home} && exec {sys.executable} {program}"
    try:
        subprocess.run(["unshare", "-rm", "sh", "-c", f"mount -t tmpfs none {home}"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no file system can be mounted here: {error}")
    done = subprocess.run(["unshare", "-rm", "sh", "-c", mounted], capture_output=True, text=True, check=False)
    assert done.stdout.endswith("deleted\n"), done.stderr[-3000:]


def test_the_command_says_what_is_left(folio: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:  # noqa: F811
    gone, home = tmp_path / "gone.txt", ("--home", tmp_path / "home")
    gone.write_text(secret(9, 120), encoding="utf-8")
    assert folio(*home, "ingest", gone)[0] == 0
    assert folio(*home, "docs", "rm", "gone.txt", "--yes")[0] == 0
    (tmp_path / "home" / "copy").write_text(secret(9, 120), encoding="utf-8")
    code, said, error = folio(*home, "index", "verify", "--privacy", gone, "--json")
    assert code == 4
    assert {trace["path"] for trace in json.loads(said)["traces"][str(gone)]} >= {"copy"}
    assert "copy holds" in error
    (tmp_path / "home" / "copy").unlink()
    warmed = tmp_path / "home" / "kv" / "0123456789ab.0000.passages.safetensors"
    warmed.parent.mkdir()
    warmed.write_bytes(b"kv")
    code, said, error = folio(*home, "index", "verify", "--privacy", gone, "--json")
    assert (code, json.loads(said)["made"]) == (4, [str(warmed)])
    assert "was made of a deleted document" in error
    assert folio(*home, "index", "compact")[0] == 0
    code, said, error = folio(*home, "index", "verify", "--privacy", gone, "--json")
    assert (code, json.loads(said)["traces"]) == (0, {str(gone): []}), error


def test_a_needle_is_found_wherever_it_lies() -> None:
    data = secret(1).encode()
    needles = Needles(windows_of(data))
    assert len(needles) > 500
    for shift in range(9):
        assert len(needles.found(bytes(shift) + data[:4800])) == 200
    assert needles.found(secret(2).encode()) == {}
    assert not Needles([*windows_of(b"-" * 500), *windows_of_text(" " * 500)]), "what everything holds tells nothing"

"""Files, uploads and index generations in the data folder, and in a store that several machines reach."""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from retrieval.errors import IndexCorrupt, StoreUnavailable
from retrieval.index.shared_generations import fetch, tidy
from retrieval.library import Library
from retrieval.store.blobs import Blobs, LocalBlobs, RemoteBlobs, open_blobs
from retrieval.types import Upload


@pytest.fixture(params=["folder", "file", "memory"])
def blobs(request: pytest.FixtureRequest, tmp_path: Path) -> Blobs:
    urls = {"folder": None, "file": f"file://{tmp_path}/store", "memory": f"memory://{secrets.token_hex(4)}/folio"}
    return open_blobs(tmp_path / "home", urls[request.param])


def test_a_blob_is_what_was_put(blobs: Blobs) -> None:
    assert (blobs.size("files/ab/x"), blobs.sha256("files/ab/x"), blobs.age_s("files/ab/x")) == (None, None, 0.0)
    with pytest.raises(KeyError):
        blobs.get("files/ab/x")
    blobs.put("files/ab/x", b"one")
    blobs.put("files/ab/x", b"three")
    blobs.put("uploads/job/0", b"")
    assert blobs.get("files/ab/x") == b"three"
    assert blobs.size("files/ab/x") == 5
    assert blobs.sha256("files/ab/x") == hashlib.sha256(b"three").hexdigest()
    assert blobs.age_s("files/ab/x") < 60
    assert list(blobs.names("files")) == ["files/ab/x"]
    assert list(blobs.names("uploads/job")) == ["uploads/job/0"]
    for _ in range(2):
        blobs.remove("files/ab/x")
        blobs.remove("uploads/job/0")
    assert list(blobs.names("files")) == list(blobs.names("uploads")) == []


def test_a_store_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailable, match="nosuch://bucket"):
        open_blobs(tmp_path, "nosuch://bucket")
    assert isinstance(open_blobs(tmp_path, None), LocalBlobs)


def test_a_store_that_fails_is_told_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = RemoteBlobs(f"file://{tmp_path}")

    def away(*_: Any, **__: Any) -> None:
        raise TimeoutError("no route")

    for name in ("pipe_file", "cat_file", "find", "put_file"):
        monkeypatch.setattr(store._fs, name, away)
    for call in (
        lambda: store.put("a/b", b""),
        lambda: store.get("a/b"),
        lambda: list(store.names("a")),
        lambda: store.put_file("a/b", tmp_path),
    ):
        with pytest.raises(StoreUnavailable, match="cannot be reached: no route"):
            call()


@pytest.fixture
def machines(tmp_path: Path, embedder: Any) -> Callable[[str], Library]:
    """Libraries of several machines: homes of their own, one database, one store."""

    def open_(name: str) -> Library:
        database = f"sqlite:///{tmp_path / 'shared.db'}"
        return Library.open(tmp_path / name, database, embedder, blobs=f"file://{tmp_path}/store")

    return open_


def test_machines_share_files_uploads_and_generations(machines: Callable[[str], Library], tmp_path: Path) -> None:
    text = b"The bridge was built by Ada Miller. The mill is gone."
    with machines("one") as one, machines("two") as two:
        stored = one.ingest([Upload("bridge.txt", text)])[0]
        generation = one.build_index().generation
        assert two.original(stored.id) == text
        found = two.search("bridge")
        assert found.generation == generation, "fetched, not built again"
        assert [hit.text for hit in found.hits] == [hit.text for hit in one.search("bridge").hits]
        assert sorted(path.name for path in (tmp_path / "two" / "index").iterdir()) == sorted(
            path.name for path in (tmp_path / "one" / "index").iterdir()
        )
        job = one.jobs.submit([Upload("trees.txt", b"The oak is old.")], "default", "local")
        assert two.jobs.run_next(), "taken by another machine"
        assert one.jobs.get(job.id, "local").status == "done"
        assert not [path for path in (tmp_path / "store" / "uploads").rglob("*") if path.is_file()]
        assert two.verify_index().ok
        one.delete(stored.id)
        two.compact()
        assert two.verify_index().ok
        assert hashlib.sha256(text).hexdigest() not in {path.name for path in (tmp_path / "store").rglob("*")}
    assert not (tmp_path / "one" / "files").exists()


def test_a_store_keeps_no_more_generations_than_sql_names(machines: Callable[[str], Library], tmp_path: Path) -> None:
    with machines("one") as one:
        for number in range(4):
            one.ingest([Upload(f"{number}.txt", f"word{number} and more".encode())])
            one.build_index()
    kept = sorted(path.name for path in (tmp_path / "store" / "index").iterdir() if any(path.iterdir()))
    assert kept == sorted(path.name for path in (tmp_path / "one" / "index").iterdir())
    assert len(kept) == 2


def test_a_generation_that_is_nowhere_is_passed_over(machines: Callable[[str], Library], tmp_path: Path) -> None:
    with machines("one") as one:
        stored = one.ingest([Upload("bridge.txt", b"The bridge is old.")])[0]
        one.build_index()
    for path in sorted((tmp_path / "store" / "index").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    with machines("two") as two:
        assert [hit.document for hit in two.search("bridge").hits] == [stored.id]
    with pytest.raises(IndexCorrupt, match="neither in"):
        fetch(RemoteBlobs(f"file://{tmp_path}/store"), tmp_path / "two" / "index", "gen-00000009-abcdef")


def test_only_old_and_unnamed_generations_are_tidied_away(tmp_path: Path) -> None:
    for name in ("gen-1", "gen-2", "gen-3"):
        (tmp_path / name).mkdir()
        if name != "gen-3":
            os.utime(tmp_path / name, (0, 0))
    tidy(tmp_path, {"gen-2"})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gen-2", "gen-3"]

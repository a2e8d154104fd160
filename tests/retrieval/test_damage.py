"""Damaged files and full disks: detected, said, recovered."""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import crash_child
import numpy as np
import pytest
import sqlalchemy as sa
from sqlalchemy import event

from retrieval.common import files
from retrieval.errors import StoreUnavailable
from retrieval.index import generation
from retrieval.index.token_store import CorpusTokenizer
from retrieval.library import Library
from retrieval.types import Upload

KINDS = [
    "dense.faiss", "sparse.data.npy", "sparse.vocabulary.json", "sparse.lengths.npy", "rows.npz", "documents.json",
    "tokens.npy", "suffixes.npy", "manifest.json",
]  # fmt: skip


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def remove(path: Path) -> None:
    path.unlink()


def filled(home: Path, open_library: Callable[..., Library]) -> list[str]:
    """A home with two generations; returns the names of its documents."""
    with open_library(home) as library:
        library.set_tokenizer(CorpusTokenizer("bytes", lambda text: list(text.encode())))
        for seed, name in enumerate(["a.txt", "b.txt", "c.txt"]):
            library.ingest([Upload(name, crash_child.content(name, seed).encode())])
        library.delete(library.documents()[0].id)
        return [found.name for found in library.documents()]


def newest(home: Path) -> Path:
    return max((home / "index").glob("gen-*"), key=lambda path: path.stat().st_mtime_ns)


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("tokenizer", None, "not the manifest that this Folio writes"),
        ("format", 2, "has format 2 and this Folio reads 3"),
        ("analysis", "folio-0 snowball-2.2.0", "terms of the analysis folio-0"),
    ],
)
def test_the_manifest_of_an_older_folio(field: str, value: object, said: str, tmp_path: Path, open_library) -> None:
    """It is what SQL says it is, but of other fields, format or terms: it is passed over and another one built."""
    names = filled(tmp_path, open_library)
    manifest = newest(tmp_path) / "manifest.json"
    fields = json.loads(manifest.read_text())
    if value is None:
        del fields[field]
    else:
        fields[field] = value
    manifest.write_text(json.dumps(fields))
    digest = hashlib.sha256(manifest.read_bytes()).hexdigest()
    with sqlite3.connect(tmp_path / "folio.db") as database:
        latest = "(SELECT max(id) FROM index_generations)"
        database.execute(f"UPDATE index_generations SET manifest_sha256 = ? WHERE id = {latest}", [digest])
    with open_library(tmp_path) as library:
        assert any(said in note for note in library.stats().notes)
        assert library.stats().pending == 0, "a new one was built at once"
        assert {found.name for found in library.documents()} == set(names)
        assert library.verify_index().problems == []


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory, embedder) -> tuple[Path, list[str]]:
    """A home over SQLite as ``filled`` makes it, of which each test damages a copy."""
    home = tmp_path_factory.mktemp("sound")
    return home, filled(home, lambda folder: Library.open(folder, embedder=embedder))


@pytest.mark.parametrize("damage", [truncate, flip_a_bit, remove])
@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_file_of_the_newest_generation(kind: str, damage, tmp_path: Path, sound, embedder) -> None:
    original, names = sound
    home = Path(shutil.copytree(original, tmp_path / "home"))
    damaged = newest(home) / kind
    damage(damaged)
    with Library.open(home, embedder=embedder) as library:
        notes = library.stats().notes
        assert any("was passed over" in note and kind in note for note in notes), notes
        assert library.verify_index().ok, "a sound one was built at once"
        for name in names:
            assert library.search(name, k=1, mode="sparse").hits[0].name == name
        assert library.compact().chunks == len(names)
        assert not damaged.parent.exists()


def test_every_generation_damaged(tmp_path: Path, open_library) -> None:
    names = filled(tmp_path, open_library)
    for folder in (tmp_path / "index").glob("gen-*"):
        flip_a_bit(folder / "dense.faiss")
    with open_library(tmp_path) as library:
        assert len(library.search("speaks at length", k=10).hits) == len(names)
        assert library.verify_index().problems == [], "a new generation is built at once"


def test_verify_names_the_file_that_was_altered(tmp_path: Path, open_library) -> None:
    filled(tmp_path, open_library)
    with open_library(tmp_path) as library:
        library.build_index()
        flip_a_bit(newest(tmp_path) / "sparse.data.npy")
        original = next((tmp_path / "files").glob("??/*"))
        flip_a_bit(original)
        problems = "\n".join(library.verify_index().problems)
    assert "sparse.data.npy was altered" in problems
    assert "file of document" in problems


def test_verify_compares_the_index_with_sql(tmp_path: Path, open_library) -> None:
    filled(tmp_path, open_library)
    with open_library(tmp_path) as library:
        library.build_index()
        with library.database.write() as connection:
            connection.execute(sa.text("DELETE FROM embeddings WHERE chunk_id = (SELECT max(id) FROM chunks)"))
            connection.execute(sa.text("UPDATE chunks SET text = 'altered' WHERE id = (SELECT min(id) FROM chunks)"))
        problems = "\n".join(library.verify_index().problems)
        assert "1 chunks have no vector" in problems
        assert "not the slice it claims" in problems


def test_a_damaged_database_is_said_to_be(tmp_path: Path, embedder) -> None:
    with Library.open(tmp_path, embedder=embedder) as library:
        library.ingest([Upload("a.txt", b"word " * 20_000)])
    path = tmp_path / "folio.db"
    data = bytearray(path.read_bytes())
    data[8192 : len(data) - 4096] = np.random.default_rng(0).bytes(len(data) - 12288)
    path.write_bytes(data)
    with pytest.raises(StoreUnavailable, match=r"damaged .* restore it from a backup"):
        touch_everything(tmp_path, embedder)


def touch_everything(home: Path, embedder) -> None:
    with Library.open(home, embedder=embedder) as library:
        library.search("word")
        library.verify_index()


def test_a_full_disk_while_the_index_is_built(tmp_path: Path, open_library, monkeypatch) -> None:
    """The documents are in SQL already: nothing acknowledged depends on the index."""
    real = files.write_synced
    budget = [0]

    def full(path: Path, write):
        def limited(sink):
            def sink_(data: bytes):
                budget[0] -= len(data)
                if budget[0] < 0:
                    raise OSError(errno.ENOSPC, "No space left on device", str(path))
                return sink(data)

            return write(sink_)

        return real(path, limited)

    monkeypatch.setattr(generation, "write_synced", full)
    with open_library(tmp_path) as library:
        for size in (0, 100, 1000, 2000):
            budget[0] = size
            name = f"n{size}.txt"
            [result] = library.ingest([Upload(name, crash_child.content(name, size).encode())])
            assert result.status == "ready"
            assert any("No space left" in note for note in library.stats().notes)
            assert library.search(name, mode="sparse").hits[0].name == name
            budget[0] = size
            with pytest.raises(StoreUnavailable, match=r"cannot write .*No space left on device; free some space"):
                library.rebuild()
        assert not list((tmp_path / "index").glob("*")), "no half of a generation is left"
        monkeypatch.undo()
        assert library.build_index().chunks == 4
        assert library.verify_index().problems == []


def test_a_full_disk_under_the_database(tmp_path: Path, embedder) -> None:
    with Library.open(tmp_path, embedder=embedder) as library:
        library.ingest([Upload("a.txt", b"The first one is kept.")])

        @event.listens_for(library.database.engine, "checkout")
        def limit_pages(dbapi_connection, *_) -> None:
            count = dbapi_connection.execute("PRAGMA page_count").fetchone()[0]
            dbapi_connection.execute(f"PRAGMA max_page_count={count + 2}")

        with pytest.raises(StoreUnavailable, match=r"the disk of .* is full; free some space"):
            library.ingest([Upload("b.txt", b"word " * 50_000)])
        assert [found.name for found in library.documents()] == ["a.txt"]
        event.remove(library.database.engine, "checkout", limit_pages)
        library.database.engine.dispose()
        assert library.ingest([Upload("b.txt", b"word " * 50_000)])[0].status == "ready"
        assert library.verify_index().problems == []


def test_interrupting_an_ingest_keeps_what_was_acknowledged(tmp_path: Path, open_library) -> None:
    with open_library(tmp_path) as library:

        def interrupt(progress) -> None:
            if progress.name == "c.txt" and progress.phase == "store":
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            library.ingest(
                [Upload(name, crash_child.content(name, 0).encode()) for name in ("a.txt", "b.txt", "c.txt")],
                progress=interrupt,
            )
        assert {found.name for found in library.documents()} == {"a.txt", "b.txt"}
        assert {hit.name for hit in library.search("speaks at length").hits} == {"a.txt", "b.txt"}
        library.ingest([Upload("c.txt", crash_child.content("c.txt", 0).encode())])
        assert library.verify_index().problems == []

"""The facade, end to end, with a fast embedder."""

from __future__ import annotations

from pathlib import Path

import pytest

from retrieval.errors import EmbedderMismatch, InvalidRequest, NotFound
from retrieval.library import Library
from retrieval.types import Upload

TEXT = "The miller built a bridge of stone.\r\n\r\nThe smith forged a bell of bronze, and it rang at noon."


def test_plain_text_is_stored_unchanged_and_found(library: Library) -> None:
    [result] = library.ingest([Upload("village.txt", TEXT.encode())])
    assert (result.status, result.pages, result.chunks, result.error) == ("ready", 1, 1, None)
    assert result.id
    assert library.text(result.id) == TEXT
    hits, generation, _ = library.search("bell of bronze", k=3)
    assert generation == 1
    assert hits[0].document == result.id
    assert hits[0].text == library.text(result.id, hits[0].start, hits[0].end) == TEXT


@pytest.mark.parametrize("mode", ["hybrid", "dense", "sparse"])
def test_delete_and_reingest_take_effect_at_once(library: Library, mode: str) -> None:
    first, second = library.ingest(
        [Upload("a.txt", b"A heron stood in the reeds."), Upload("b.txt", b"A kettle sang.")]
    )
    library.delete(first.id)
    assert [hit.document for hit in library.search("heron kettle", mode=mode).hits] == [second.id]
    with pytest.raises(NotFound, match="there is no document"):
        library.text(first.id)
    [again] = library.ingest([Upload("a.txt", b"A heron stood in the reeds.")])
    assert again.id != first.id
    assert library.search("heron", mode=mode).hits[0].document == again.id


def test_same_content_is_stored_once_and_new_content_is_a_new_version(library: Library) -> None:
    [first] = library.ingest([Upload("a.txt", b"The ferry leaves at nine.")])
    [same] = library.ingest([Upload("copy.txt", b"The ferry leaves at nine.")])
    assert (same.id, same.deduplicated) == (first.id, True)
    [newer] = library.ingest([Upload("a.txt", b"The ferry leaves at ten.")])
    assert (newer.id, newer.version) == (first.id, 2)
    assert [hit.text for hit in library.search("ferry").hits] == ["The ferry leaves at ten."]
    assert library.text(first.id) == "The ferry leaves at ten."
    assert library.text(first.id, version=1) == "The ferry leaves at nine."
    assert [found.version for found in library.documents()] == [2]


def test_one_bad_file_fails_alone_and_is_listed_with_its_cause(library: Library, tmp_path: Path) -> None:
    bad, good, absent = library.ingest(
        [Upload("x.pdf", b"%PDF-1.4 cut"), Upload("y.txt", b"Good text."), tmp_path / "none.txt"]
    )
    assert (bad.status, good.status, absent.status) == ("failed", "ready", "failed")
    assert bad.error is not None
    assert "x.pdf is cut off or damaged" in bad.error
    assert "no such file" in str(absent.error)
    assert {found.name: found.status for found in library.documents()} == {
        "x.pdf": "failed",
        "y.txt": "ready",
    }
    [mended] = library.ingest([Upload("x.pdf.txt", b"Mended.")])
    assert mended.status == "ready"


def test_a_failed_new_version_leaves_the_good_one(library: Library) -> None:
    [good] = library.ingest([Upload("a.html", b"<p>The gate is green.</p>")])
    [bad] = library.ingest([Upload("a.html", b"<script>1</script>")])
    assert (bad.status, bad.id) == ("failed", good.id)
    assert library.document(good.id).status == "ready"
    assert library.text(good.id) == "The gate is green."


def test_owners_and_collections_are_apart(library: Library) -> None:
    [mine] = library.ingest([Upload("a.txt", b"The password of the vault is plum.")], owner="ann")
    [other] = library.ingest([Upload("a.txt", b"The password of the vault is pear.")], owner="bob", collection="c")
    for mode in ("hybrid", "dense", "sparse"):
        assert [h.document for h in library.search("password vault", owner="ann", mode=mode).hits] == [mine.id]
        assert library.search("password vault", owner="eve", mode=mode).hits == []
    for call in (library.document, library.text, library.pages, library.chunks, library.original, library.delete):
        with pytest.raises(NotFound):
            call(mine.id, owner="bob")
    with pytest.raises(NotFound):
        library.search("password", owner="ann", documents=[other.id])
    with pytest.raises(NotFound):
        library.search("password", owner="ann", collection="c")
    assert library.search("password", owner="bob", collection="c").hits[0].document == other.id


def test_a_reopened_library_finds_the_same(tmp_path: Path, embedder, open_library) -> None:
    with open_library(tmp_path, embedder) as library:
        library.ingest([Upload(f"{n}.txt", f"Station {n} keeps lamp {n * 7}.".encode()) for n in range(20)])
        before = library.search("station 3 lamp", k=20)
    with open_library(tmp_path, embedder) as library:
        assert library.search("station 3 lamp", k=20) == before
        assert library.verify_index().ok


def test_another_process_sees_changes_and_new_generations(tmp_path: Path, embedder, open_library) -> None:
    with open_library(tmp_path, embedder) as writer, open_library(tmp_path, embedder) as reader:
        [first] = writer.ingest([Upload("a.txt", b"An otter swam.")])
        assert reader.search("otter").hits[0].document == first.id
        writer.delete(first.id)
        assert reader.search("otter").hits == []
        writer.ingest([Upload("b.txt", b"An otter slept.")])
        writer.build_index()
        assert reader.search("otter").hits[0].name == "b.txt"


def test_another_embedder_is_refused_until_rebuilt(tmp_path: Path, embedder, open_library) -> None:
    other = type(embedder)(dim=32, name="other")
    with open_library(tmp_path, embedder) as library:
        library.ingest([Upload("a.txt", b"The lighthouse is white.")])
    with open_library(tmp_path, other) as changed, open_library(tmp_path, embedder) as old:
        with pytest.raises(EmbedderMismatch, match="folio index rebuild"):
            changed.search("lighthouse")
        with pytest.raises(EmbedderMismatch):
            changed.ingest([Upload("b.txt", b"x y z")])
        assert old.search("lighthouse").hits
        assert len(changed.documents()) == 1
        assert changed.rebuild().built
        assert changed.search("lighthouse").hits[0].name == "a.txt"
        assert changed.verify_index().problems == []
        with pytest.raises(EmbedderMismatch, match="another process"):
            old.search("lighthouse")


def test_export_and_import(tmp_path: Path, embedder, open_library, library: Library) -> None:
    library.ingest([Upload("a.txt", TEXT.encode()), Upload("b.md", b"# Moss\n\nMoss grows slowly.")], collection="c")
    archive = tmp_path / "c.zip"
    assert library.export_collection(archive, "c") == 2
    other = type(embedder)(dim=32, name="other")
    for model in (embedder, other):
        with open_library(tmp_path / model.fingerprint, model) as copy:
            assert [result.status for result in copy.import_collection(archive, owner="ann")] == ["ready"] * 2
            assert copy.text(copy.documents(owner="ann", collection="c")[0].id, owner="ann") in (
                TEXT,
                "# Moss\n\nMoss grows slowly.",
            )
            assert copy.search("moss", owner="ann", k=1).hits[0].name == "b.md"
            assert copy.verify_index().problems == []
            assert all(result.deduplicated for result in copy.import_collection(archive, owner="ann"))


def test_an_archive_holds_every_version(tmp_path: Path, open_library, library: Library) -> None:
    [old] = library.ingest([Upload("a.txt", b"The first wording of it.")])
    [new] = library.ingest([Upload("a.txt", b"The second wording of it.")])
    library.export_collection(tmp_path / "c.zip")
    with open_library(tmp_path / "copy") as copy:
        for _ in range(2):
            [result] = copy.import_collection(tmp_path / "c.zip")
            assert result.version == new.version == 2
        assert copy.text(str(result.id), version=1) == "The first wording of it."
        assert copy.text(str(result.id)) == "The second wording of it."
        assert [page.end for page in copy.pages(str(result.id), version=1)] == [len("The first wording of it.")]
        assert [hit.text for hit in copy.search("wording").hits] == ["The second wording of it."]
        assert copy.verify_index().problems == []
        copy.delete(str(result.id))
        assert not list((tmp_path / "copy" / "files").glob("??/*"))
    assert old.id == new.id


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(("", 3), "empty"), (("x", 0), "k must"), (("x", 5000), "k must")],
)
def test_bad_queries_are_refused(library: Library, arguments: tuple[str, int], message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        library.search(*arguments)
    with pytest.raises(InvalidRequest, match="mode"):
        library.search("x", mode="psychic")  # type: ignore[arg-type]


def test_hostile_names_become_labels(library: Library) -> None:
    names = ["../../etc/passwd", "C:\\windows\\x.txt", "a\x00b\u202e.txt", "n" * 400 + ".txt"]
    results = library.ingest([Upload(name, f"text {number}".encode()) for number, name in enumerate(names)])
    assert [result.name for result in results[:3]] == ["passwd", "x.txt", "ab.txt"]
    assert all(result.status == "ready" for result in results)
    assert len(results[3].name) <= 255
    assert results[3].name.endswith(".txt")

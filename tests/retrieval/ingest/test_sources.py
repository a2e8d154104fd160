"""What an ingest is given: each file under its path below the folder, none in another's place, none from elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from retrieval.errors import InvalidRequest, NotFound
from retrieval.ingest.sources import sources
from retrieval.library import Library
from retrieval.types import Upload


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    given = tmp_path / "given"
    for name in ("one/docs/a.txt", "two/docs/a.txt", "elsewhere/b.txt"):
        (given / name).parent.mkdir(parents=True)
        (given / name).write_text(f"The words of {name}.")
    return given


def test_files_of_one_name_in_one_folder_are_two_documents(folder: Path, library: Library) -> None:
    results = library.ingest([folder])
    assert [result.name.partition("/")[2] for result in results] == [
        "elsewhere/b.txt",
        "one/docs/a.txt",
        "two/docs/a.txt",
    ]
    assert all(result.version == 1 for result in results)
    assert len(library.documents()) == 3


@pytest.mark.parametrize("roots", [("one/docs", "two/docs"), ("one/docs/a.txt", "two/docs/a.txt")])
def test_the_collision_of_two_roots_is_told(folder: Path, library: Library, roots: tuple[str, str]) -> None:
    first, second = library.ingest([folder / root for root in roots])
    assert (first.status, second.status, second.id, second.error_kind) == ("ready", "failed", None, "NameTaken")
    assert "another file of this ingest" in str(second.error)
    assert "one/docs" in str(second.error)
    assert "one/docs" in library.text(first.id or "")
    assert len(library.documents()) == 1


def test_the_same_file_twice_is_no_collision(folder: Path, library: Library) -> None:
    again = library.ingest([folder / "elsewhere/b.txt", folder / "elsewhere" / "b.txt"])[1]
    assert again.deduplicated


def test_uploads_of_one_name_in_one_job_do_not_become_versions(library: Library) -> None:
    job = library.jobs.submit([Upload("a.txt", b"first words"), Upload("a.txt", b"other words")], "default", "local")
    assert library.jobs.run_next()
    results = library.jobs.get(job.id, "local").results
    assert [(result.status, result.error_kind) for result in results] == [("ready", None), ("failed", "NameTaken")]
    assert library.document(results[0].id or "").version == 1


def test_links_out_of_the_folder_are_followed_when_asked_alone(folder: Path) -> None:
    root = folder / "one"
    (root / "out.txt").symlink_to(folder / "elsewhere/b.txt")
    (root / "outdir").symlink_to(folder / "elsewhere")
    (root / "in.txt").symlink_to(root / "docs/a.txt")
    (root / "docs/loop").symlink_to(root)
    found = {source.name: source.origin for source in sources([root])}
    assert [name for name, origin in found.items() if isinstance(origin, Path)] == ["one/in.txt", "one/docs/a.txt"]
    assert "link out of the folder" in str(found["one/out.txt"])
    assert "one/outdir" in found
    asked = [source.name for source in sources([root], follow_links=True)]
    assert asked == ["one/in.txt", "one/out.txt", "one/docs/a.txt", "one/outdir/b.txt"]


def test_what_is_not_there_leaves_no_document(folder: Path, library: Library) -> None:
    (result,) = library.ingest([folder / "nowhere.txt"])
    assert (result.status, result.id) == ("failed", None)
    assert "there is no such file" in str(result.error)
    assert library.documents() == []


def test_a_document_is_found_by_id_name_or_the_end_of_its_path(folder: Path, library: Library) -> None:
    library.ingest([folder / "one", folder / "two", folder / "elsewhere"])
    found = library.find("elsewhere/b.txt")
    assert found == library.find(found.id) == library.find("b.txt")
    with pytest.raises(InvalidRequest, match=r"docs/a.txt is the name of several documents"):
        library.find("docs/a.txt")
    with pytest.raises(NotFound):
        library.find("%.txt")

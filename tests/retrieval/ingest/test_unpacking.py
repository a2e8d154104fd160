"""Zip archives: each file in one is a document under ``archive.zip/path``; none hurts, none hides another."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import make_files
import pytest

from retrieval.errors import Cancelled
from retrieval.ingest import unpacking
from retrieval.ingest.sources import Source
from retrieval.library import Library
from retrieval.parsing.limits import Limits
from retrieval.parsing.sandbox import Sandbox
from retrieval.types import IngestResult, Upload

PAPERS = {
    "paper/one.txt": b"A swan drifted.",
    "paper/two.pdf": make_files.pdf(["A crow called."]),
    "paper/sums.csv": b"Zone,Sum\nEUR,1001\n",
    "logo.png": b"\x89PNG\r\n\x1a\n",
    "empty/": b"",
    ".hidden/a.txt": b"not wanted",
    "__MACOSX/paper/._one.txt": b"not wanted",
}


def told(results: list[IngestResult]) -> dict[str, str]:
    return {result.name: result.status for result in results}


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    opened = Sandbox(Limits())
    yield opened
    opened.close()


def test_each_file_of_an_archive_is_a_document(library: Library, tmp_path: Path) -> None:
    folder = tmp_path / "given"
    folder.mkdir()
    (folder / "all.zip").write_bytes(make_files.archive(PAPERS))
    results = library.ingest([folder])
    assert told(results) == {
        "given/all.zip/paper/one.txt": "ready",
        "given/all.zip/paper/two.pdf": "ready",
        "given/all.zip/paper/sums.csv": "ready",
        "given/all.zip/logo.png": "failed",
    }
    assert "is a PNG image" in str(results[-1].error)
    (hit,) = library.search("1001", mode="sparse").hits
    assert (hit.name, hit.place) == ("given/all.zip/paper/sums.csv", "Zone, A2 to Sum, B2")
    again = library.ingest([folder])
    assert [result.deduplicated for result in again] == [True, True, True, False]


def test_a_new_version_of_an_archive_gives_new_versions_of_its_files(library: Library) -> None:
    first = library.ingest([Upload("a.zip", make_files.archive({"x/a.txt": b"first words", "b.txt": b"they stay"}))])
    second = library.ingest([Upload("a.zip", make_files.archive({"x/a.txt": b"other words", "b.txt": b"they stay"}))])
    assert [(r.id == s.id, s.version, s.deduplicated) for r, s in zip(first, second, strict=True)] == [
        (True, 2, False),
        (True, 1, True),
    ]


def test_names_stay_below_the_archive_and_no_file_takes_the_place_of_another(library: Library) -> None:
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("../../etc/a.txt", "one")
        archive.writestr("/etc/a.txt", "two")
        archive.writestr("c:\\notes\\b.txt", "three")
        archive.writestr("Übung.txt", "four")
    results = library.ingest([Upload("../x/evil.zip", buffer.getvalue())])
    assert told(results[:1] + results[2:]) == {
        "evil.zip/etc/a.txt": "ready",
        "evil.zip/c:/notes/b.txt": "ready",
        "evil.zip/Übung.txt": "ready",
    }
    assert (results[1].name, results[1].error_kind, results[1].id) == ("evil.zip/etc/a.txt", "NameTaken", None)


def test_a_name_in_utf_8_is_read_so_though_the_archive_does_not_say_it(library: Library) -> None:
    data = make_files.archive({"Übung.txt": b"four"})
    said = data.replace(b"\x00\x08\x00\x00", b"\x00\x00\x00\x00")  # the flag, in both headers
    (result,) = library.ingest([Upload("a.zip", said)])
    assert result.name == "a.zip/Übung.txt"


def test_archives_within_archives_are_opened_so_far(library: Library) -> None:
    data = make_files.archive({"deepest.txt": b"A swan drifted."})
    for number in range(4):
        data = make_files.archive({f"{number}.zip": data, f"{number}.txt": f"Words of {number}.".encode()})
    results = library.ingest([Upload("a.zip", data)])
    assert told(results) == {
        "a.zip/3.zip/2.zip/1.zip": "failed",
        "a.zip/3.zip/2.zip/1.txt": "ready",
        "a.zip/3.zip/2.txt": "ready",
        "a.zip/3.txt": "ready",
    }
    assert "lies in 3 archives" in str(results[0].error)


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("bomb.zip", make_files.archive({"a.txt": b"\0" * 300_000_000}), "would expand"),
        ("many.zip", make_files.archive({f"{n}.txt": b"" for n in range(10_001)}), "holds 10001 files"),
        ("cut.zip", make_files.archive({"a.txt": b"word"})[:-30], "cut off or damaged"),
        ("text.zip", b"just text", "its content is text"),
        ("paper.zip", make_files.docx("x"), r"rename it to end in .docx"),
        ("none.zip", make_files.archive({"__MACOSX/a": b"x"}), "holds no files"),
    ],
)
def test_an_archive_that_cannot_be_opened_is_one_failed_document(
    library: Library, name: str, data: bytes, says: str
) -> None:
    (result,) = library.ingest([Upload(name, data)])
    assert (result.name, result.status) == (name, "failed")
    assert says in str(result.error)
    assert str(result.error).startswith(name)


def test_a_file_that_is_damaged_in_the_archive_fails_alone(library: Library) -> None:
    data = bytearray(make_files.archive({"a.txt": b"A swan drifted.", "b.txt": b"A crow called."}, zipfile.ZIP_STORED))
    data[data.index(b"swan")] ^= 1
    results = library.ingest([Upload("a.zip", bytes(data))])
    assert told(results) == {"a.zip/a.txt": "failed", "a.zip/b.txt": "ready"}
    assert "cannot be unpacked (Bad CRC-32" in str(results[0].error)


def test_what_archives_within_an_archive_come_to_is_bounded_together(sandbox: Sandbox) -> None:
    inner = make_files.archive({f"{n}.txt": bytes([65 + n]) * 400 for n in range(3)}, zipfile.ZIP_STORED)
    outer = make_files.archive({f"{n}.zip": inner for n in range(5)}, zipfile.ZIP_STORED)
    limits = Limits(zip_expanded_bytes=len(inner) * 5 + 3000)
    found = list(unpacking.unpacked([Source("a.zip", outer)], sandbox, limits))
    assert [source.name for source in found if isinstance(source.origin, bytes)] == [
        f"a.zip/{archive}.zip/{n}.txt" for archive in range(2) for n in range(3)
    ]
    assert sum("would expand" in str(source.origin) for source in found) == 3


def test_a_job_works_off_the_files_of_an_archive_and_goes_on_among_them(library: Library) -> None:
    job = library.jobs.submit([Upload("all.zip", make_files.archive(PAPERS)), Upload("z.txt", b"last")], "c", "local")
    real = library.jobs._ingest_one

    def stops_at_the_second(source: Source, *rest: object) -> IngestResult:
        if source.name.endswith("two.pdf"):
            raise Cancelled("stopped")
        return real(source, *rest)  # type: ignore[arg-type]

    library.jobs._ingest_one = stops_at_the_second  # type: ignore[method-assign,assignment]
    library.jobs.run_next()
    assert told(library.jobs.get(job.id, "local").results) == {"all.zip/paper/one.txt": "ready"}
    library.jobs._ingest_one = real  # type: ignore[method-assign]
    assert library.jobs.run_next()
    done = library.jobs.get(job.id, "local")
    assert (done.status, [result.name for result in done.results]) == (
        "done",
        ["all.zip/paper/one.txt", "all.zip/paper/two.pdf", "all.zip/paper/sums.csv", "all.zip/logo.png", "z.txt"],
    )
    assert library.search("crow", mode="sparse", collection="c").hits
    assert not (library.home / "uploads" / job.id).exists()


def test_a_job_of_an_archive_that_cannot_be_opened_says_why(library: Library) -> None:
    job = library.jobs.submit([Upload("cut.zip", make_files.archive({"a.txt": b"word"})[:-30])], "c", "local")
    assert library.jobs.run_next()
    done = library.jobs.get(job.id, "local")
    assert done.status == "failed"
    assert "cut off or damaged" in str(done.error)

"""Files that want to hurt their reader are refused or contained, and the process that asked stays well."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import make_files
import psutil
import pytest

from retrieval.analysis.terms import terms
from retrieval.errors import NotFound, ParserLimit, UnreadableFile
from retrieval.parsing.limits import Limits
from retrieval.parsing.sandbox import Sandbox
from retrieval.parsing.sentences import sentences

HOSTILE = make_files.hostile()
# What may be read after all: nothing in it did harm.
READABLE = {
    "traversal.docx", "deep.html", "attributes.html", "entities.html", "comment.html", "endless.pdf", "wide.csv",
    "quote.csv", "deep.eml", "external.docx", "deep.epub", "laughs.epub", "open.html", "bomb.docx",
    "comments.txt", "comments", "meta.html", "breaks.txt",
}  # fmt: skip


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    opened = Sandbox(Limits(parse_seconds=3, pdf_pages=2000))
    yield opened
    opened.close()


class Watch:
    """The most memory that the parser's processes held at once, in bytes."""

    def __init__(self) -> None:
        self.peak = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        me = psutil.Process()
        while not self._stop.wait(0.02):
            total = 0
            for child in me.children(recursive=True):
                try:
                    if "retrieval.parsing.worker" in child.cmdline():
                        total += child.memory_info().rss - child.memory_info().shared
                except psutil.Error:
                    continue
            self.peak = max(self.peak, total)


def test_there_are_enough_of_them() -> None:
    assert len(HOSTILE) >= 30


@pytest.mark.parametrize("name", sorted(HOSTILE))
def test_a_hostile_file_is_refused_or_contained(name: str, sandbox: Sandbox) -> None:
    started = time.monotonic()
    with Watch() as watch:
        try:
            parsed = sandbox.parse(HOSTILE[name], name)
        except UnreadableFile as error:
            refusal: str | None = str(error)
        else:
            refusal = None
            assert name in READABLE, parsed.text[:200]
            assert "root:" not in parsed.text
            assert all(0 <= page.start <= page.end <= len(parsed.text) for page in parsed.pages)
    assert refusal is None or name in refusal
    assert time.monotonic() - started < 60
    assert watch.peak < 512 << 20
    assert not os.path.exists("/tmp/folio-evil")
    assert sandbox.parse(b"<p>still well</p>", "next.html").text == "still well"


@pytest.mark.parametrize("name", sorted(name for name in HOSTILE if name.endswith(".pdf")))
def test_a_hostile_page_is_drawn_or_refused(name: str, sandbox: Sandbox) -> None:
    with Watch() as watch:
        try:
            drawn = sandbox.page_image(HOSTILE[name], name, 1, 2000)
        except (UnreadableFile, NotFound) as error:
            refusal: str | None = str(error)
        else:
            refusal = None
            assert drawn.startswith(b"\x89PNG")
    assert refusal is None or name in refusal
    assert watch.peak < 512 << 20
    assert sandbox.parse(b"<p>still well</p>", "next.html").text == "still well"


def test_a_parse_that_takes_too_long_is_ended() -> None:
    impatient = Sandbox(Limits(parse_seconds=0.3))
    try:
        with pytest.raises(ParserLimit, match=r"slow\.html took longer than"):
            impatient.parse(b"<p>word</p>" * 3_000_000, "slow.html")
        assert impatient.parse(b"<p>quick</p>", "quick.html").text == "quick"
    finally:
        impatient.close()


def test_a_parse_that_takes_too_much_memory_is_ended() -> None:
    small = Sandbox(Limits(parse_memory_bytes=150 << 20))
    try:
        with pytest.raises(UnreadableFile, match="MiB to read"):
            small.parse(b"<p>word</p>" * 10_000_000, "big.html")
    finally:
        small.close()


@pytest.mark.parametrize("name", ["big.txt", "big.md"])
def test_plain_text_is_read_by_the_limited_child_too(name: str) -> None:
    small = Sandbox(Limits(parse_memory_bytes=150 << 20))
    try:
        with pytest.raises(UnreadableFile, match="needs more than 150 MiB"):
            small.parse(b"word " * 32_000_000, name)
    finally:
        small.close()


@pytest.mark.parametrize("pattern", ["<!-- ", ". ", "\r\n ", "\n", " ", "*", '!"', "[1] ", "- "])
def test_text_is_split_in_time_that_grows_with_its_length(pattern: str) -> None:
    """What this process does with a text that the parser has handed over."""
    text = ("word." + pattern * 500_000)[:500_000] + "word"
    started = time.process_time()
    for first, last in sentences(text):
        assert first < last
    terms(text)
    assert time.process_time() - started < 10


def test_the_parser_sees_nothing_of_our_environment(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOLIO_DATABASE_URL", "postgresql://folio:secret@db/folio")
    fresh = Sandbox(Limits())
    try:
        fresh.parse(b"<p>x</p>", "x.html")
        assert fresh._workers[0]._process is not None
        assert b"secret" not in Path(f"/proc/{fresh._workers[0]._process.pid}/environ").read_bytes()
    finally:
        fresh.close()


def test_a_thousand_pages_with_progress_and_bounded_memory(library) -> None:
    from retrieval.types import Upload

    data = make_files.pdf([f"Page {n} tells of topic{n}.\nIt has a second line." for n in range(1, 1001)])
    seen = []
    with Watch() as watch:
        [result] = library.ingest([Upload("long.pdf", data)], progress=seen.append)
    assert (result.status, result.pages) == ("ready", 1000)
    assert watch.peak < 256 << 20
    parsing = [progress for progress in seen if progress.phase == "parse" and progress.total == 1000]
    assert [progress.done for progress in parsing] == list(range(1, 1001))
    assert parsing[500].eta_s is not None
    assert parsing[500].eta_s > 0
    hit = library.search("topic777", k=1, mode="sparse").hits[0]
    assert library.page_of(result.id, library.text(result.id).index("topic777")) == 777
    assert hit.page <= 777

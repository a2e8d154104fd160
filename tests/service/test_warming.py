"""Passages that are read while documents are indexed: found by whoever asks next, and never in anybody's way."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from retrieval.library import Library
from retrieval.types import Upload
from service.answering.prompting.layouts import Passage, PlainLayout
from service.engine.async_engine import AsyncEngine
from service.engine.kv import PASSAGES
from service.engine.params import SamplingParams
from service.runtime import Runtime
from service.settings import load_settings
from service.warming import PassageWarmer

TEXT = "\n\n".join(f"The keeper of gate {n} is Brother Aldous of the {n}th hour, who sleeps." * 8 for n in range(12))


@pytest.fixture(scope="module")
def engine(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[AsyncEngine]:
    folder = tmp_path_factory.mktemp("warm") / "kv"
    with AsyncEngine.from_pretrained(str(tiny_model), kv_memory=32 << 20, warm_folder=folder) as opened:
        yield opened


@pytest.fixture
def library(tmp_path: Path, engine: AsyncEngine) -> Iterator[Library]:
    with Library.open(tmp_path / "home") as opened:
        yield opened
    for file in files(engine):
        file.unlink()


def files(engine: AsyncEngine) -> list[Path]:
    folder = engine.engine.config.warm_folder
    assert folder is not None
    return sorted(folder.glob(f"*{PASSAGES}"))


def warmer_of(library: Library, engine: AsyncEngine, most_bytes: int = 1 << 30) -> PassageWarmer:
    made = PassageWarmer(library, engine, PlainLayout(engine.tokenizer), most_bytes)
    library.jobs.on_ingested = made.take
    return made


def take_in(library: Library, *texts: str, owner: str = "ann") -> str:
    uploads = [Upload(f"{number}.txt", text.encode()) for number, text in enumerate(texts)]
    job = library.jobs.submit(uploads, "default", owner).id
    assert library.jobs.run_next()
    return job


def told(logs: Sequence[Mapping[str, Any]]) -> list[str]:
    """What was logged of passages."""
    return [entry["event"] for entry in logs if "passages" in entry["event"]]


def hits(library: Library, engine: AsyncEngine, owner: str) -> float:
    """The share of the passages' tokens of a blended prompt that an owner finds read."""
    layout = PlainLayout(engine.tokenizer)
    [document] = library.documents(owner="ann")
    passages = [Passage.of(hit) for hit in library.chunks(document.id, "ann")]
    prompt = layout.build("Who keeps gate 4?", passages[2:4])
    params = SamplingParams(max_tokens=1, attention="blend:first=4", drafter="none", owner=owner)
    [found] = engine.generate([prompt.ids], params, spans=[prompt.spans])
    assert found.error is None
    return float(found.stats["passage_hits"] / found.stats["passage_tokens"])


def test_what_a_job_took_in_is_found_read_by_its_owner_alone(library: Library, engine: AsyncEngine) -> None:
    warmer = warmer_of(library, engine)
    take_in(library, TEXT)
    [document] = library.documents(owner="ann")  # there already, though nothing of it was read
    assert files(engine) == []
    warmer.warm_next()
    assert {file.name.partition(".")[0] for file in files(engine)} == {document.id}
    assert hits(library, engine, "bob") == 0
    assert hits(library, engine, "ann") == 1
    take_in(library, TEXT)  # the same content once more
    with pytest.raises(IndexError):
        warmer.warm_next()


def test_what_a_cancelled_job_took_in_is_not_read(library: Library, engine: AsyncEngine) -> None:
    warmer = warmer_of(library, engine)

    def cancel(job: str, owner: str, document: str) -> None:
        warmer.take(job, owner, document)
        library.jobs.cancel(job, owner)

    library.jobs.on_ingested = cancel
    take_in(library, TEXT)
    assert len(library.documents(owner="ann")) == 1
    warmer.warm_next()
    assert files(engine) == []


@pytest.mark.parametrize("ended", ["deleted", "stopped"])
def test_reading_ends_with_its_document_or_the_service(
    library: Library, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch, ended: str
) -> None:
    warmer = warmer_of(library, engine)
    take_in(library, TEXT)
    [document] = library.documents(owner="ann")
    read, asked = engine.read, 0

    def end_at_the_third(*arguments: Any) -> None:
        nonlocal asked
        asked += 1
        if asked == 3 and ended == "deleted":
            library.delete(document.id, "ann")
        elif asked == 3:
            warmer.stop()
        read(*arguments)

    monkeypatch.setattr(engine, "read", end_at_the_third)
    warmer.warm_next()
    assert asked == 3
    assert files(engine) == []


def test_what_waits_for_a_deleted_document_is_dropped_in_silence(library: Library, engine: AsyncEngine) -> None:
    warmer = warmer_of(library, engine)
    take_in(library, TEXT)
    library.delete(library.documents(owner="ann")[0].id, "ann")
    with capture_logs() as logs:
        warmer.warm_next()
    assert told(logs) == files(engine) == []


def test_disk_and_queue_are_bounded(library: Library, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.warming.WAITING", 1)
    monkeypatch.setattr("service.engine.async_engine.PASSAGES_A_FILE", 2)
    warmer = warmer_of(library, engine, most_bytes=1)
    with capture_logs() as logs:
        take_in(library, TEXT, "Another text about lamps. " * 40)
        warmer.warm_next()
        with pytest.raises(IndexError):
            warmer.warm_next()
    assert len(files(engine)) == 1
    assert told(logs) == [
        "too many documents wait for their passages to be read",
        "no room for more passages that are read ahead",
    ]


def test_a_document_deleted_while_the_last_file_is_written_leaves_none(
    library: Library, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    warmer = warmer_of(library, engine)
    take_in(library, TEXT)
    [document] = library.documents(owner="ann")
    warm = engine.warm_passages

    def deleted_meanwhile(*arguments: Any) -> list[Path]:
        library.delete(document.id, "ann")
        written = warm(arguments[0], arguments[1])
        assert files(engine)
        return written

    monkeypatch.setattr(engine, "warm_passages", deleted_meanwhile)
    warmer.warm_next()
    assert files(engine) == []


def test_owners_take_turns(library: Library, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.warming.WAITING", 3)
    warmer = warmer_of(library, engine)
    for number in range(5):
        warmer.take("job", "bob", f"bob{number}")
    for number in range(2):
        warmer.take("job", "ann", f"ann{number}")
    asked: list[str] = []
    monkeypatch.setattr(library, "chunks", lambda document, owner: asked.append(document) or [])
    for _ in range(5):
        warmer.warm_next()
    assert asked == ["bob0", "ann0", "bob1", "ann1", "bob2"]


def test_what_cannot_be_read_leaves_the_others(
    library: Library, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    warmer = warmer_of(library, engine)
    take_in(library, TEXT, "Another text about lamps. " * 40)
    warm = engine.warm_passages

    def fail_once(*arguments: Any) -> list[Path]:
        monkeypatch.setattr(engine, "warm_passages", warm)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(engine, "warm_passages", fail_once)
    with capture_logs() as logs:
        warmer.warm_next()
    assert told(logs) == ["passages are not read ahead"]
    assert "No space left" in next(entry["cause"] for entry in logs if "passages" in entry["event"])
    warmer.warm_next()
    assert len(files(engine)) == 1


def test_a_service_that_is_told_to_reads_ahead(tiny_model: Path, tmp_path: Path) -> None:
    settings = load_settings(home=tmp_path, model=str(tiny_model), kv_memory=32 << 20, warm_passages=1 << 30)

    async def serve() -> list[Path]:
        runtime = Runtime(settings)
        await runtime.start(serving=True)
        await runtime.ended.wait()
        assert runtime.failure is None
        runtime.jobs.submit([Upload("gates.txt", TEXT.encode())], "default", "ann")
        found: list[Path] = []
        for _ in range(200):
            await asyncio.sleep(0.1)
            found = sorted((tmp_path / "kv").glob(f"*{PASSAGES}"))
            if found:
                break
        await runtime.stop()
        return found

    with capture_logs() as logs:
        assert asyncio.run(serve())
    ready = next(entry for entry in logs if entry["event"] == "ready")
    assert ready["precision"] == "float32", "in which numbers it runs"

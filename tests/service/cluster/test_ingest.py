"""Ingest by Ray Data gives what a local ingest gives: ids, text, failures, duplicates."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa

from retrieval.common.progress import ProgressMeter
from retrieval.errors import EmptyFile, UnreadableFile
from retrieval.ingest.ingestion import Refused, parse_and_chunk, prepare
from retrieval.ingest.sources import Source
from retrieval.library import Library
from retrieval.store.tables import chunks, embeddings, pages, versions

EMBEDDER = "minilm"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Good files, an empty one, a damaged one, and the same content twice."""
    inside = tmp_path / "files"
    inside.mkdir()
    for number in range(6):
        words = " ".join(f"word{number * i} of file {number}." for i in range(60))
        (inside / f"file{number}.txt").write_text(f"File {number}\n\n{words}\n")
    (inside / "empty.txt").touch()
    (inside / "broken.pdf").write_bytes(b"%PDF-1.7 nothing of the kind")
    (inside / "twin.txt").write_bytes((inside / "file3.txt").read_bytes())
    (inside / "page.html").write_text("<html><body><h1>Bridges</h1><p>The bridge has seven arches.</p></body></html>")
    return inside


def contents(library: Library) -> dict[str, list[tuple[Any, ...]]]:
    """What a search and a citation rest on; documents' own ids are random by design and left out."""
    with library.database.read() as connection:
        found = {
            "chunks": connection.execute(
                sa.select(chunks.c.id, chunks.c.start, chunks.c.end, chunks.c.page, chunks.c.tokens, chunks.c.text)
            ),
            "pages": connection.execute(sa.select(pages.c.number, pages.c.start, pages.c.end)),
            "versions": connection.execute(sa.select(versions.c.version, versions.c.sha256, versions.c.text)),
        }
        return {name: [tuple(row) for row in rows] for name, rows in found.items()}


def vectors(library: Library) -> np.ndarray:
    with library.database.read() as connection:
        rows = connection.execute(sa.select(embeddings.c.vector).order_by(embeddings.c.chunk_id)).scalars()
        return np.stack([np.frombuffer(row, dtype="<f4") for row in rows])


def outcome(results: list[Any]) -> list[tuple[Any, ...]]:
    return [(r.name, r.status, r.pages, r.chunks, r.error, r.deduplicated, r.error_kind) for r in results]


def test_preparing_apart_and_storing_is_ingesting(folder: Path, tmp_path: Path) -> None:
    """The writer's half, without Ray."""
    with Library.open(tmp_path / "one") as one, Library.open(tmp_path / "two") as two:
        local = one.ingest([folder])

        def items() -> Iterator[Any]:
            for path in sorted(folder.iterdir()):
                name, data = f"files/{path.name}", path.read_bytes()
                meter = ProgressMeter(name)
                try:
                    yield prepare(name, data, two._sandbox, two.embedder, two.chunking, meter)
                except UnreadableFile as error:
                    yield Refused(name, data, error)

        assert outcome(two.ingest_prepared(items())) == outcome(local)
        assert contents(two) == contents(one)
        known = two.known_content()
        assert len(known) == 7
        again = two.ingest_prepared([Source("files/file1.txt", (folder / "file1.txt").read_bytes())])
        assert again[0].deduplicated
        with pytest.raises(EmptyFile):
            parse_and_chunk("empty", b"   ", two._sandbox, two.embedder, two.chunking, ProgressMeter("empty"))


@pytest.mark.cluster
@pytest.mark.timeout(600)
def test_ray_data_gives_what_a_local_ingest_gives(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    from service.cluster import deployment
    from service.cluster.ingest import ingest

    deployment.start_ray(None, cpus=5)
    try:
        with Library.open(tmp_path / "one") as one, Library.open(tmp_path / "two") as two:
            local = one.ingest([folder])
            seen: list[str] = []
            by_ray = ingest(two, EMBEDDER, [folder], "default", "local", 2, lambda result: seen.append(result.name))
            assert outcome(by_ray) == outcome(local)
            assert seen == [result.name for result in local]
            assert contents(two) == contents(one)
            assert np.abs(vectors(one) - vectors(two)).max() < 1e-5
            question = "How many arches has the bridge?"
            assert [hit.text for hit in two.search(question).hits] == [hit.text for hit in one.search(question).hits]
            assert two.verify_index().ok
            again = ingest(two, EMBEDDER, [folder], "default", "local", 2)
            assert [result.deduplicated for result in again] == [result.status == "ready" for result in again]
    finally:
        deployment.leave_ray()

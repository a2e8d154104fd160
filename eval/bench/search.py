"""A library of many chunks: search latency with concurrent clients, delete, restart.

The chunks are sentences drawn at random from a text and get random unit vectors (embedding 100,000 chunks would take
an hour and change nothing that is measured here); the questions, of eight words, are embedded by the real model within
the measured time.
"""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, cast, get_args

import numpy as np
import typer

from eval.results import report_result
from retrieval.chunking import Chunk
from retrieval.embedding import SentenceEmbedder
from retrieval.library import Library
from retrieval.parsing import ParsedDocument, parse
from retrieval.sentences import sentences
from retrieval.store import documents as store
from retrieval.types import Mode, Page

CHUNKS_PER_DOCUMENT = 1000
TARGETS = {"search_p95_ms": 50.0, "delete_s": 1.0, "restart_s": 3.0}


def run(file: Path, chunks: int = 100_000, clients: int = 10, queries: int = 1000, k: int = 10) -> dict[str, Any]:
    """Fill a library with ``chunks`` chunks made from ``file`` and measure it.

    Returns latencies in milliseconds per mode (p50, p95, p99, from call to hits with text), queries per second,
    seconds to build the index, to delete a document of 1,000 chunks, and to reopen until the index is ready.
    """
    rng = np.random.default_rng(0)
    text = parse(file.read_bytes(), file.name).text
    known = [" ".join(text[start:end].split()) for start, end in sentences(text) if end - start > 30]
    embedder = SentenceEmbedder()
    embedder.encode_queries(["load the model before the clock starts"])
    with tempfile.TemporaryDirectory() as home:
        with Library.open(home, embedder=embedder) as library:
            _fill(library, embedder, known, chunks, rng)
            build_s = _seconds(library.build_index)
        restart_s = []
        for _ in range(3):
            with Library.open(home, embedder=embedder) as library:
                restart_s.append(_seconds(library.stats))
        with Library.open(home, embedder=embedder) as library:
            library.warm_up()
            modes = {mode: _measure(library, known, mode, clients, queries, k, rng) for mode in get_args(Mode)}
            deletes = [_seconds(lambda: library.delete(library.documents(limit=1)[0].id)) for _ in range(3)]
    return {
        "chunks": chunks,
        "clients": clients,
        "queries": queries,
        "k": k,
        "search": modes,
        "build_index_s": build_s,
        "delete_1000_chunks_s": sorted(deletes)[1],
        "restart_s": sorted(restart_s)[1],
        "targets": TARGETS,
    }


def _fill(
    library: Library, embedder: SentenceEmbedder, known: list[str], chunks: int, rng: np.random.Generator
) -> None:
    library.stats()  # notes the embedder in the store
    with library.database.read() as connection:
        embedder_id = int(connection.exec_driver_sql("SELECT id FROM embedders").scalar_one())
    for number in range(chunks // CHUNKS_PER_DOCUMENT):
        new = _document(number, known, embedder.dim, embedder_id, rng)
        with library.database.write() as connection:
            store.commit_version(connection, new)


def _document(number: int, known: list[str], dim: int, embedder_id: int, rng: np.random.Generator) -> store.NewVersion:
    parts = [" ".join(known[i] for i in rng.integers(len(known), size=4)) for _ in range(CHUNKS_PER_DOCUMENT)]
    ends = np.cumsum([len(part) + 2 for part in parts])
    pieces = [
        Chunk(int(end) - len(part) - 2, int(end) - 2, 1, len(part) // 5, part)
        for part, end in zip(parts, ends, strict=True)
    ]
    text = "\n\n".join(parts)
    vectors = rng.standard_normal((len(parts), dim)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    parsed = ParsedDocument(text, [Page(1, 0, len(text))], "text/plain")
    return store.NewVersion(
        "local", "default", f"{number}.txt", f"{number:064x}", len(text), parsed, pieces, vectors, embedder_id
    )


def _measure(
    library: Library, known: list[str], mode: str, clients: int, queries: int, k: int, rng: np.random.Generator
) -> dict[str, float]:
    """Every client asks its next question as soon as the last is answered; no question is asked twice."""
    words = [" ".join(known[i].split()[:8]) for i in rng.choice(len(known), size=queries, replace=False)]
    latencies: list[float] = []

    def client(mine: list[str]) -> None:
        for question in mine:
            started = time.perf_counter()
            hits = library.search(question, k, mode=cast(Mode, mode)).hits
            latencies.append(time.perf_counter() - started)
            if len(hits) != k:
                raise ValueError(f"{len(hits)} hits for {question!r}")

    threads = [threading.Thread(target=client, args=(words[number::clients],)) for number in range(clients)]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - started
    p50, p95, p99 = 1000 * np.percentile(latencies, [50, 95, 99])
    return {"p50_ms": p50, "p95_ms": p95, "p99_ms": p99, "queries_per_s": len(latencies) / seconds}


def _seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def command(
    file: Annotated[Path, typer.Argument(help="a text to take sentences from", exists=True, dir_okay=False)],
    chunks: Annotated[int, typer.Option(help="chunks in the library", min=CHUNKS_PER_DOCUMENT)] = 100_000,
    clients: Annotated[int, typer.Option(help="concurrent clients", min=1)] = 10,
    queries: Annotated[int, typer.Option(help="questions per mode", min=10)] = 1000,
    output: Annotated[Path | None, typer.Option(help="where the figures go")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print the figures")] = False,
) -> None:
    """Search, delete and restart with many chunks."""
    report_result("bench_search", run(file, chunks, clients, queries), as_json=as_json, output=output)


if __name__ == "__main__":
    typer.run(command)

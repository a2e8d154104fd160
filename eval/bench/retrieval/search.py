"""A library of many chunks: search latency over HTTP with concurrent clients, delete, restart.

The chunks are sentences drawn at random from a text and get random unit vectors (embedding 100,000 chunks would take
an hour and change nothing that is measured here); the questions, of eight words, are embedded by the real model within
the measured time, and no question is asked twice in a round. ``folio serve`` and the clients are two processes on one
machine.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Annotated, Any, get_args

import httpx
import numpy as np
from typer import Argument, Option

from eval.bench.base import BenchOptions, Figures, Rounds, bench
from eval.bench.serving.serve import serving
from eval.bench.timer import seconds
from retrieval.embedding.embedder import SentenceEmbedder
from retrieval.library import Library
from retrieval.parsing import ParsedDocument, parse
from retrieval.parsing.chunking import Chunk
from retrieval.parsing.sentences import sentences
from retrieval.store import documents as store
from retrieval.types import Mode, Page

CHUNKS_PER_DOCUMENT = 1000
HITS = 10
# A client that costs next to nothing: it shares the machine with what it measures.
_HEAD = (
    b"POST /v1/search HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
)

TARGETS = {"search_p95_ms": 50.0, "delete_s": 1.0, "restart_s": 3.0}


@dataclass(frozen=True, kw_only=True)
class Options(BenchOptions):
    """Search, delete and restart with many chunks."""

    file: Annotated[Path, Argument(help="A text to take sentences from.", exists=True, dir_okay=False)]
    chunks: Annotated[int, Option(min=3 * CHUNKS_PER_DOCUMENT, help="Chunks in the library.")] = 100_000
    clients: Annotated[int, Option(min=1, help="Concurrent clients.")] = 10
    queries: Annotated[int, Option(min=10, help="Questions per mode and round.")] = 500
    rounds: Rounds = 5


def run(options: Options) -> Figures:
    """Fill a library with chunks made from a file and measure it.

    Returns per mode latencies in milliseconds (p50, p95, p99, from the request to the hits with their text) and queries
    per second, each the median of ``rounds`` in which the modes take turns, with every round's p95; and seconds to
    build the index, to delete a document of 1,000 chunks, and to reopen until it is ready.
    """
    file, clients = options.file, options.clients
    rng = np.random.default_rng(0)
    text = parse(file.read_bytes(), file.name).text
    known = [" ".join(text[start:end].split()) for start, end in sentences(text) if end - start > 30]
    embedder = SentenceEmbedder()
    embedder.encode_queries(["load the model before the clock starts"])
    with tempfile.TemporaryDirectory() as home:
        with Library.open(home, embedder=embedder) as library:
            _fill(library, embedder, known, options.chunks, rng)
            build_s = seconds(library.build_index)
        restart_s = []
        for _ in range(3):
            with Library.open(home, embedder=embedder) as library:
                restart_s.append(seconds(library.stats))
        measured: dict[str, list[dict[str, float]]] = {mode: [] for mode in get_args(Mode)}
        with serving(HOME=home) as server:
            port = httpx.URL(server.endpoint.url).port or 80
            for mode in get_args(Mode):
                asyncio.run(_measure(port, mode, _questions(known, 3 * clients, rng), clients))  # compiled, cached
            for _ in range(options.rounds):
                for mode, found in measured.items():
                    found.append(asyncio.run(_measure(port, mode, _questions(known, options.queries, rng), clients)))
        with Library.open(home, embedder=embedder) as library:
            library.warm_up()
            deletes = [seconds(lambda: library.delete(library.documents(limit=1)[0].id)) for _ in range(3)]
    return {
        **options.told("chunks", "clients", "queries", "rounds"),
        "k": HITS,
        "search": {mode: _medians(rounds_of_mode) for mode, rounds_of_mode in measured.items()},
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


def _questions(known: list[str], count: int, rng: np.random.Generator) -> list[str]:
    """Eight words each, no two alike."""
    starts = list(dict.fromkeys(" ".join(sentence.split()[:8]) for sentence in known))
    return [starts[i] for i in rng.choice(len(starts), size=count, replace=False)]


async def _measure(port: int, mode: str, questions: list[str], clients: int) -> dict[str, float]:
    """Every client asks its next question as soon as the last is answered, on a connection of its own."""
    latencies: list[float] = []

    async def client(mine: list[str]) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for question in mine:
            body = json.dumps({"query": question, "limit": HITS, "mode": mode}).encode()
            started = time.perf_counter()
            writer.write(_HEAD % (port, len(body)) + body)
            found = await _body(reader)
            latencies.append(time.perf_counter() - started)
            if len(json.loads(found)["results"]) != HITS:
                raise ValueError(f"not {HITS} hits for {question!r}: {found[:200]!r}")
        writer.close()

    started = time.perf_counter()
    await asyncio.gather(*(client(questions[number::clients]) for number in range(clients)))
    elapsed = time.perf_counter() - started
    p50, p95, p99 = 1000 * np.percentile(latencies, [50, 95, 99])
    return {"p50_ms": p50, "p95_ms": p95, "p99_ms": p99, "queries_per_s": len(latencies) / elapsed}


def _medians(rounds: list[dict[str, float]]) -> dict[str, Any]:
    return {name: median(found[name] for found in rounds) for name in rounds[0]} | {
        "p95_ms_of_each_round": [found["p95_ms"] for found in rounds]
    }


async def _body(reader: asyncio.StreamReader) -> bytes:
    """Of one response with a length."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
    return await reader.readexactly(int(length.partition(b":")[2]))


command = bench(Options, run, "bench_search")

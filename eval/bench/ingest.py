"""What ingesting a book costs over embedding it: the whole of ``Library.ingest`` against sentence-transformers' encode.

Both embed the same chunks with the same model in the same process, in turn; the figure is the ratio of the medians.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from eval.figures import report_result
from retrieval.embedding.embedder import SentenceEmbedder
from retrieval.library import Library
from retrieval.parsing import parse
from retrieval.parsing.chunking import chunk

TARGET_OVERHEAD = 0.15


def run(file: Path, repeats: int = 3) -> dict[str, Any]:
    """Ingest ``file`` into an empty library and encode its chunks, ``repeats`` times each.

    Returns seconds of each run, their medians, and ``overhead`` = ingest ÷ encode − 1.
    """
    embedder = SentenceEmbedder()
    embedder.encode_queries(["load the model before the clock starts"])
    parsed = parse(file.read_bytes(), file.name)
    texts = [piece.text for piece in chunk(parsed.text, parsed.pages, embedder.token_starts)]
    encode_s, ingest_s = [], []
    for _ in range(repeats):
        encode_s.append(_time_encode(embedder, texts))
        ingest_s.append(_time_ingest(embedder, file))
    encode, ingest = statistics.median(encode_s), statistics.median(ingest_s)
    return {
        "file": file.name,
        "bytes": file.stat().st_size,
        "chunks": len(texts),
        "encode_s": encode_s,
        "ingest_s": ingest_s,
        "encode_median_s": encode,
        "ingest_median_s": ingest,
        "overhead": ingest / encode - 1,
        "target_overhead": TARGET_OVERHEAD,
    }


def _time_encode(embedder: SentenceEmbedder, texts: list[str]) -> float:
    """sentence-transformers' own call, with its own batching."""
    from sentence_transformers import SentenceTransformer

    model: SentenceTransformer = embedder.model_in_memory
    started = time.perf_counter()
    model.encode(texts, normalize_embeddings=True, show_progress_bar=False)
    return time.perf_counter() - started


def _time_ingest(embedder: SentenceEmbedder, file: Path) -> float:
    """From the path to a committed document in a searchable index."""
    with tempfile.TemporaryDirectory() as home, Library.open(home, embedder=embedder) as library:
        started = time.perf_counter()
        [result] = library.ingest([file])
        seconds = time.perf_counter() - started
    if result.status == "failed":
        raise ValueError(result.error)
    return seconds


def command(
    file: Annotated[Path, typer.Argument(help="the book to ingest", exists=True, dir_okay=False)],
    repeats: Annotated[int, typer.Option(help="runs of each side", min=1)] = 3,
    output: Annotated[Path | None, typer.Option(help="where the figures go")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print the figures")] = False,
) -> None:
    """Ingest a file against embedding its chunks alone."""
    report_result("bench_ingest", run(file, repeats), as_json=as_json, output=output)


if __name__ == "__main__":
    typer.run(command)

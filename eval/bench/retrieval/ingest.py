"""What ingesting a book costs over embedding it: the whole of ``Library.ingest`` against sentence-transformers' encode.

Both embed the same chunks with the same model in the same process, in turn; the figure is the ratio of the medians.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument

from eval.bench.base import BenchOptions, Figures, Repeats, bench
from eval.bench.timer import Times, in_turn, seconds, timed
from retrieval.embedding.embedder import SentenceEmbedder
from retrieval.library import Library
from retrieval.parsing import parse
from retrieval.parsing.chunking import chunk

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

TARGET_OVERHEAD = 0.15


@dataclass(frozen=True, kw_only=True)
class Options(BenchOptions):
    """Ingest a file against embedding its chunks alone."""

    file: Annotated[Path, Argument(help="The book to ingest.", exists=True, dir_okay=False)]
    repeats: Repeats = 3


def run(options: Options) -> Figures:
    """Ingest a file into an empty library and encode its chunks, ``repeats`` times each, in turn.

    Returns seconds of each run, their medians, and ``overhead`` = ingest ÷ encode − 1.
    """
    file, embedder = options.file, SentenceEmbedder()
    embedder.encode_queries(["load the model before the clock starts"])
    parsed = parse(file.read_bytes(), file.name)
    texts = [piece.text for piece in chunk(parsed.text, parsed.pages, embedder.token_starts)]
    ways = {"encode": partial(_time_encode, embedder, texts), "ingest": partial(_time_ingest, embedder, file)}
    encode, ingest = (Times(taken) for taken in in_turn(ways, options.repeats).values())
    return {
        "file": file.name,
        "bytes": file.stat().st_size,
        "chunks": len(texts),
        "encode_s": encode,
        "ingest_s": ingest,
        "encode_median_s": encode.median,
        "ingest_median_s": ingest.median,
        "overhead": ingest.median / encode.median - 1,
        "target_overhead": TARGET_OVERHEAD,
    }


def _time_encode(embedder: SentenceEmbedder, texts: list[str]) -> float:
    """sentence-transformers' own call, with its own batching."""
    model: SentenceTransformer = embedder.model_in_memory
    return seconds(lambda: model.encode(texts, normalize_embeddings=True, show_progress_bar=False))


def _time_ingest(embedder: SentenceEmbedder, file: Path) -> float:
    """From the path to a committed document in a searchable index."""
    with tempfile.TemporaryDirectory() as home, Library.open(home, embedder=embedder) as library:
        [result], taken = timed(lambda: library.ingest([file]))
    if result.status == "failed":
        raise ValueError(result.error)
    return taken


command = bench(Options, run, "bench_ingest")

"""Files into the library by Ray Data: parsed and embedded in pools of actors, stored by one writer, in order.

The writer is the process that calls; it alone holds the library's right to write. Since it stores the files in the
order in which they are named, chunks get the ids and the text that a local ingest gives them.
"""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from retrieval.common.progress import ProgressMeter
from retrieval.errors import UnreadableFile
from retrieval.ingest.ingestion import Prepared, Refused, parse_and_chunk
from retrieval.ingest.sources import Source, sources
from retrieval.ingest.unpacking import unpacked
from retrieval.library import Library
from retrieval.parsing import Limits
from retrieval.parsing.chunking import ChunkingOptions
from retrieval.parsing.sandbox import Sandbox
from retrieval.types import IngestResult
from service.cluster.deployment import import_ray
from service.errors import Unavailable

Row = dict[str, Any]
"""One file on its way through Ray Data: ``item`` is pickled, because Arrow knows none of our types."""


class Parser:
    """An actor that reads, parses and chunks files."""

    def __init__(self, embedder: str | Path, limits: Limits, chunking: ChunkingOptions, known: frozenset[str]) -> None:
        from retrieval.embedding.embedder import make_embedder

        self._embedder = make_embedder(embedder)
        self._limits = limits
        self._chunking = chunking
        self._known = known
        self._sandbox = Sandbox(limits)

    def __call__(self, row: Row) -> Row:
        return {"item": pickle.dumps(self._read(pickle.loads(row["source"])))}

    def _read(self, source: Source) -> Refused | Source | tuple[Any, ...]:
        data = b""
        try:
            data = source.read(self._limits)
            if hashlib.sha256(data).hexdigest() in self._known:
                return Source(source.name, data)  # the writer will say that it is there
            meter = ProgressMeter(source.name)
            parts = parse_and_chunk(source.name, data, self._sandbox, self._embedder, self._chunking, meter)
            return (source.name, data, *parts)
        except UnreadableFile as error:
            return Refused(source.name, data, error)


class Embedding:
    """An actor that embeds the chunks of parsed files."""

    def __init__(self, embedder: str | Path) -> None:
        from retrieval.embedding.embedder import make_embedder

        self._embedder = make_embedder(embedder)

    def __call__(self, row: Row) -> Row:
        item = pickle.loads(row["item"])
        if not isinstance(item, tuple):
            return row
        name, data, parsed, pieces = item
        vectors = self._embedder.encode_documents([piece.in_context for piece in pieces])
        prepared = Prepared(name, data, hashlib.sha256(data).hexdigest(), parsed, pieces, vectors)
        return {"item": pickle.dumps(prepared)}


def ingest(
    library: Library,
    embedder: str | Path,
    paths: Sequence[Path],
    collection: str,
    owner: str,
    workers: int = 1,
    progress: Callable[[IngestResult], None] | None = None,
) -> list[IngestResult]:
    """What `library.ingest(paths)` does, with as many parsers and as many embedders at work.

    Ray must have been joined or started, and every node must see the files under these paths.

    Raises what `library.ingest` raises; Unavailable when a worker dies again and again.
    """
    sandbox = Sandbox(library.limits)
    try:
        given = sources(_absolute(paths), unpack=lambda found: unpacked(found, sandbox, library.limits))
        files = [{"source": pickle.dumps(source)} for source in given]
    finally:
        sandbox.close()
    if not files:
        return []
    known = library.known_content(collection, owner)
    items = _prepared(files, embedder, library.limits, library.chunking, known, workers)
    return library.ingest_prepared(items, collection, owner, progress=progress)


def _prepared(
    files: list[Row],
    embedder: str | Path,
    limits: Limits,
    chunking: ChunkingOptions,
    known: frozenset[str],
    workers: int,
) -> Iterator[Prepared | Refused | Source]:
    """The files in their order, as the actors finish them."""
    import_ray()
    import ray.data
    from ray.exceptions import RayError

    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    pool = ray.data.ActorPoolStrategy(min_size=1, max_size=workers)
    parsing = {"embedder": embedder, "limits": limits, "chunking": chunking, "known": known}
    rows: Any = ray.data.from_items(files, override_num_blocks=len(files))
    parsed = rows.map(Parser, fn_constructor_kwargs=parsing, compute=pool, num_cpus=1)
    embedded = parsed.map(Embedding, fn_constructor_kwargs={"embedder": embedder}, compute=pool, num_cpus=1)
    try:
        for row in embedded.iter_rows():
            yield pickle.loads(row["item"])
    except RayError as error:
        raise Unavailable(
            "The workers of the ingest failed; documents that were finished are stored.",
            hint="The same command goes on from there; Ray's log says why.",
        ) from error


def _absolute(paths: Sequence[Path]) -> list[Path]:
    """Other processes have other working folders."""
    return [path.absolute() for path in paths]

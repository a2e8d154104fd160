"""`folio index`: build, verify, stats, compact, rebuild; and `folio search`."""

from __future__ import annotations

from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from service.answering.question import nothing_to_steer
from service.cli.context import LOCAL_OWNER, Collection, JsonFlag, ModelName, library_of, settings_of
from service.cli.output import emit_json, emit_table, error_line, note, working
from service.errors import Exit
from service.settings import EMBEDDED

if TYPE_CHECKING:
    from retrieval.library import Library
    from retrieval.types import IndexReport
    from service.answering.datastores import DatastoreReport
    from service.settings import Settings


class SearchMode(StrEnum):
    """What a search goes by: words (BM25), meaning (embeddings), or both."""

    HYBRID = "hybrid"
    DENSE = "dense"
    SPARSE = "sparse"


index = typer.Typer(help="Build, check and measure the index.", no_args_is_help=True, rich_markup_mode=None)


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.add_typer(index, name="index")
    app.command("search")(search)


@index.command("build")
def build(
    context: typer.Context,
    knn: Annotated[
        bool, typer.Option("--knn", help="Also build the model's datastore of the documents, for ask --knn.")
    ] = False,
    collection: Collection = None,
    knn_lists: Annotated[
        int | None,
        typer.Option(min=0, help="--knn: lists for approximate search; 0 for none, default: as many as pay."),
    ] = None,
    model: ModelName = None,
    as_json: JsonFlag = False,
) -> None:
    """Write a new generation of the index where anything changed since the last."""
    settings = settings_of(context, model=model)
    if knn and settings.model == EMBEDDED:
        raise nothing_to_steer("knn")
    with library_of(settings) as library:
        with working("Building the index …"):
            report = library.build_index()
        datastore = _datastore(settings, library, collection, knn_lists) if knn else None
    _show(report, as_json, datastore)


def _datastore(settings: Settings, library: Library, collection: str | None, lists: int | None) -> DatastoreReport:
    """Build the kNN datastore, or go on with one that was interrupted."""
    from service.answering.datastores import Datastores
    from service.models import load_engine

    with working(f"Loading {settings.model} …"):
        engine = load_engine(settings)
    with working("Reading the documents …"), engine:
        return Datastores(library).build(engine, LOCAL_OWNER, collection, lists)


@index.command("compact")
def compact(context: typer.Context, as_json: JsonFlag = False) -> None:
    """Drop what deleted documents left behind."""
    from service.answering.retention import forget_deleted

    settings = settings_of(context)
    with library_of(settings) as library, working("Compacting the index …"):
        report = library.compact()
        forget_deleted(library, settings)
    _show(report, as_json)


@index.command("rebuild")
def rebuild(context: typer.Context, as_json: JsonFlag = False) -> None:
    """Build the index anew from the database; after a change of embedder, embed everything anew."""
    with library_of(settings_of(context)) as library, working("Rebuilding the index …"):
        report = library.rebuild()
    _show(report, as_json)


@index.command("verify")
def verify(
    context: typer.Context,
    privacy: Annotated[
        list[Path] | None,
        typer.Option(
            "--privacy",
            help="A file that was deleted: look whether the data folder still holds anything of it; may be repeated.",
            exists=True,
            dir_okay=False,
        ),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Check the index against its hashes and against the database; exit code 4 when it does not match.

    What opening the library found wrong and mended is told too, and is also a 4: the next check is clean."""
    from service.answering.retention import made_of_deleted

    settings = settings_of(context)
    with library_of(settings) as library, working("Verifying the index …"):
        report = library.verify_index()
        mended = library.stats().notes
        traces = {path: library.traces(path.name, path.read_bytes()) for path in privacy or []}
        made = [str(path) for path in made_of_deleted(library, settings)] if privacy else []
    left = [f"{path} was made of a deleted document; `folio index compact` removes it" for path in made]
    left += [
        f"{one.path} holds {one.pieces} pieces of {path.name}, the first at byte {one.offset}; "
        "`folio index compact` removes what deletes leave"
        for path, found in traces.items()
        for one in found
    ]
    if as_json:
        traced = {str(path): [asdict(one) for one in found] for path, found in traces.items()}
        ok = report.ok and not left
        emit_json(asdict(report) | {"ok": ok, "stale": report.stale, "mended": mended, "traces": traced, "made": made})
    else:
        emit_table(["field", "value"], [[k, v] for k, v in asdict(report).items() if k != "problems"])
    for problem in [*report.problems, *mended, *left]:
        error_line(problem)
    if report.ok and report.stale:
        note("Some changes are served from the journal; `folio index build` folds them in.")
    if mended or left or not report.ok:
        raise typer.Exit(Exit.STALE)


@index.command("stats")
def stats(context: typer.Context, as_json: JsonFlag = False) -> None:
    """Count documents, chunks and what the index holds of them."""
    with library_of(settings_of(context)) as library:
        found = asdict(library.stats())
    if as_json:
        emit_json(found)
    else:
        emit_table(["field", "value"], [[key, value] for key, value in found.items()])


def search(
    context: typer.Context,
    query: Annotated[str, typer.Argument(help="What to look for.")],
    limit: Annotated[int, typer.Option("--limit", "-k", min=1, max=1000, help="Most results.")] = 10,
    mode: Annotated[SearchMode, typer.Option(help="What to search with.")] = SearchMode.HYBRID,
    collection: Collection = None,
    document: Annotated[
        list[str] | None,
        typer.Option("--document", "-d", help="Search this document (id or name) alone; may be repeated."),
    ] = None,
    rerank: Annotated[
        bool, typer.Option("--rerank", help="Let the ranker read the best; a score is then a probability.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Find passages."""
    from service.answering.passages import hit_data

    with library_of(settings_of(context)) as library:
        found = library.search(
            query,
            limit,
            collection=collection,
            documents=[library.find(one, LOCAL_OWNER).id for one in document] if document else None,
            owner=LOCAL_OWNER,
            mode=mode.value,
            rerank=rerank,
        )
    if as_json:
        results = [hit_data(hit) for hit in found.hits]
        emit_json({"results": results, "generation": found.generation, "note": found.note})
        return
    if found.note:
        note(found.note[:1].upper() + found.note[1:] + ".")
    for hit in found.hits:
        typer.echo(
            f"{hit.score:.3f}  {hit.name}, {hit.place or f'page {hit.page}'}, {hit.document}:{hit.start}-{hit.end}"
        )
        if hit.context:
            typer.echo(f"       [{' '.join(hit.context.split())[:120]}]")
        typer.echo(f"       {' '.join(hit.text.split())[:300]}\n")
    if not found.hits:
        note("Nothing found.")


def _show(report: IndexReport, as_json: bool, datastore: DatastoreReport | None = None) -> None:
    if as_json:
        emit_json(asdict(report) | ({"knn": asdict(datastore)} if datastore is not None else {}))
    else:
        state = "built" if report.built else "up to date"
        typer.echo(
            f"Generation {report.generation} {state}: {report.documents} documents, {report.chunks} chunks, "
            f"{report.seconds:.1f} s"
        )
        if datastore is not None:
            state = "built" if datastore.built else "up to date"
            typer.echo(
                f"Datastore {state}: {datastore.documents} documents, {datastore.entries:,} entries, "
                f"{datastore.bytes / 1e6:.1f} MB, {datastore.seconds:.1f} s"
            )

"""`folio ingest` and `folio docs`: documents in, listed, shown, removed."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from service.cli.context import (
    LOCAL_OWNER,
    Collection,
    IntoCollection,
    JsonFlag,
    SourcePaths,
    documents_of,
    library_of,
    settings_of,
)
from service.cli.output import LINE_S, console, emit_json, emit_table, emit_text, error_line, note
from service.errors import Exit, InvalidRequest

if TYPE_CHECKING:
    from retrieval.types import Document, IngestResult
    from retrieval.types import Progress as IngestProgress

docs = typer.Typer(help="List, show and remove documents.", no_args_is_help=True, rich_markup_mode=None)

Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command("ingest")(ingest)
    app.add_typer(docs, name="docs")


def ingest(
    context: typer.Context,
    paths: SourcePaths,
    collection: IntoCollection = "default",
    follow_links: Annotated[
        bool, typer.Option("--follow-links", help="Also read what links in a folder point to outside of it.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only name the files.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Read files into the library. What is there already is not read again, so a broken-off ingest is resumed
    by giving the same command again."""
    from retrieval.errors import Cancelled
    from retrieval.ingest.sources import sources

    if dry_run:
        names = [source.name for source in sources(paths, follow_links=follow_links)]
        if as_json:
            emit_json({"documents": [_planned(name) for name in names]})
        else:
            emit_table(["file"], [[name] for name in names])
        return
    with library_of(settings_of(context)) as library, _progress_bar() as show, _interrupts() as stop:
        try:
            results = library.ingest(
                paths, collection, LOCAL_OWNER, progress=show, cancelled=stop.is_set, follow_links=follow_links
            )
        except Cancelled:
            error_line("interrupted; documents that were finished are stored. The same command goes on from here.")
            raise typer.Exit(Exit.INTERRUPTED) from None
    report_ingest(paths, results, as_json)


def report_ingest(paths: list[Path], results: list[IngestResult], as_json: bool) -> None:
    """Print the results; exit code 1 when all files failed, 3 when some did."""
    if as_json:
        emit_json({"documents": [_result(result) for result in results]})
    else:
        _print_results(results)
    failed = sum(result.status == "failed" for result in results)
    if not results:
        raise InvalidRequest(f"There are no files in {', '.join(map(str, paths))}.")
    if failed:
        raise typer.Exit(Exit.FAILED if failed == len(results) else Exit.PARTIAL)


@docs.command("ls")
def list_documents(context: typer.Context, collection: Collection = None, as_json: JsonFlag = False) -> None:
    """List the documents."""
    with documents_of(settings_of(context)) as shelf:
        found = shelf.documents(collection, LOCAL_OWNER)
    if as_json:
        emit_json({"documents": [_document(document) for document in found]})
        return
    rows = [[d.id, d.name, d.collection, d.status, d.pages, d.chunks, d.chars] for d in found]
    emit_table(["id", "name", "collection", "status", "pages", "chunks", "characters"], rows)


@docs.command("show")
def show_document(
    context: typer.Context,
    document: Annotated[str, typer.Argument(help="Id or name of a document.", metavar="DOCUMENT")],
    text: Annotated[bool, typer.Option("--text", help="The stored text, unchanged, and nothing else.")] = False,
    start: Annotated[int, typer.Option(min=0, help="First character of the text.")] = 0,
    end: Annotated[int | None, typer.Option(min=0, help="Character after the last.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Show one document, or its text."""
    with documents_of(settings_of(context)) as shelf:
        found = shelf.find(document, LOCAL_OWNER)
        stored = shelf.text(found.id, start, end, LOCAL_OWNER) if text else None
        pages = shelf.pages(found.id, LOCAL_OWNER) if not text else []
    if as_json:
        extra: dict[str, Any] = {"text": stored} if text else {"page_spans": [asdict(page) for page in pages]}
        emit_json(_document(found) | extra)
    elif stored is not None:
        emit_text(stored)
    else:
        emit_table(["field", "value"], [[key, _shown(value)] for key, value in _document(found).items()])


@docs.command("rm")
def remove_documents(
    context: typer.Context,
    documents: Annotated[list[str], typer.Argument(help="Ids or names of documents.", metavar="DOCUMENT…")],
    yes: Yes = False,
    as_json: JsonFlag = False,
) -> None:
    """Remove documents, with their text, vectors and files."""
    from retrieval.errors import NotFound
    from service.answering.retention import forget_deleted

    removed, missing = [], []
    settings = settings_of(context)
    with library_of(settings) as library:
        if not yes:
            _confirm(f"Remove {len(documents)} document(s)?")
        for document in documents:
            try:
                removed.append(library.delete(library.find(document, LOCAL_OWNER).id, LOCAL_OWNER))
            except NotFound as error:
                missing.append(document)
                error_line(f"{error}.")
        forget_deleted(library, settings)
    if as_json:
        emit_json({"removed": [document.id for document in removed], "missing": missing})
    if missing:
        raise typer.Exit(Exit.PARTIAL if removed else Exit.FAILED)


def _confirm(question: str) -> None:
    """Ask, on a terminal; elsewhere --yes is needed."""
    if not console.is_terminal:
        raise InvalidRequest("Nobody is here to confirm.", hint="Give --yes.", param="yes")
    if not typer.confirm(question, err=True):
        raise typer.Exit(Exit.FAILED)


@contextmanager
def _interrupts() -> Iterator[threading.Event]:
    """An event that the first Ctrl-C sets, so that work ends between two commits; the second is as usual."""
    stop = threading.Event()
    before = signal.getsignal(signal.SIGINT)

    def handle(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, before)
        stop.set()

    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    signal.signal(signal.SIGINT, handle)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)


class _ProgressLines:
    """A line on stderr every few seconds: what is read, and how far it is."""

    def __init__(self) -> None:
        self._said = time.monotonic()

    def __call__(self, progress: IngestProgress) -> None:
        if time.monotonic() - self._said >= LINE_S:
            self._said = time.monotonic()
            note(f"{progress.name}: {progress.phase} {progress.done} of {progress.total}")


@contextmanager
def _progress_bar() -> Iterator[Any]:
    """A callback for the library's progress: a bar on stderr, and lines where that is no terminal."""
    if not console.is_terminal:
        yield _ProgressLines()
        return
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
    from rich.progress import TimeRemainingColumn as Eta

    columns = [
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        Eta(),
    ]
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=None)

        def show(progress: IngestProgress) -> None:
            shown = progress.name if len(progress.name) < 40 else f"…{progress.name[-39:]}"
            bar.update(
                task,
                description=f"{shown}: {progress.phase}",
                completed=progress.done,
                total=progress.total,
            )

        yield show


def _print_results(results: list[IngestResult]) -> None:
    rows = [[r.id or "-", r.name, _status(r), r.pages, r.chunks] for r in results]
    emit_table(["id", "name", "status", "pages", "chunks"], rows)
    for result in results:
        if result.error:
            error_line(result.error)
        for said in result.notes:
            note(f"{result.name}: {said}")


def _status(result: IngestResult) -> str:
    return "known already" if result.deduplicated else result.status


def _result(result: IngestResult) -> dict[str, Any]:
    names = ("id", "name", "status", "pages", "chunks", "error", "notes", "version", "deduplicated", "seconds")
    return {name: getattr(result, name) for name in names}


def _planned(name: str) -> dict[str, Any]:
    return {"id": None, "name": name, "status": "planned", "pages": 0, "chunks": 0, "error": None}


def _shown(value: Any) -> Any:
    return "\n".join(map(str, value)) if isinstance(value, list) else value


def _document(document: Document) -> dict[str, Any]:
    times = {name: getattr(document, name).isoformat() for name in ("created_at", "updated_at")}
    return {key: value for key, value in asdict(document).items() if key != "owner"} | times

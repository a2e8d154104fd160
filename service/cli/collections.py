"""`folio collections`: listed, written to an archive, read from one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from service.cli.context import LOCAL_OWNER, Collection, JsonFlag, library_of, settings_of
from service.cli.documents import report_ingest
from service.cli.output import emit_json, emit_table, note, working
from service.errors import InvalidRequest

collections = typer.Typer(help="List, export and import collections.", no_args_is_help=True, rich_markup_mode=None)


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.add_typer(collections, name="collections")


@collections.command("ls")
def list_collections(context: typer.Context, as_json: JsonFlag = False) -> None:
    """List the collections."""
    with library_of(settings_of(context)) as library:
        found = library.collections(LOCAL_OWNER)
    if as_json:
        emit_json({"collections": [{"name": one.name, "documents": one.documents} for one in found]})
    else:
        emit_table(["collection", "documents"], [[one.name, one.documents] for one in found])


@collections.command("export")
def export(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="Name of the collection.", metavar="NAME")],
    file: Annotated[Path, typer.Argument(help="Archive to write.", metavar="FILE", dir_okay=False)],
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it is there.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Write a collection to one archive: files, texts, vectors, and every version."""
    if file.exists() and not force:
        raise InvalidRequest(f"{file} is there already.", hint="Give --force to replace it.", param="FILE")
    with library_of(settings_of(context)) as library, working(f"Writing {file} …"):
        count = library.export_collection(file, name, LOCAL_OWNER)
    if as_json:
        emit_json({"collection": name, "documents": count, "file": str(file), "bytes": file.stat().st_size})
    else:
        note(f"{count} documents in {file}, {file.stat().st_size / 1e6:.1f} MB")


@collections.command("import")
def import_(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(help="Archive that `export` wrote.", metavar="FILE", dir_okay=False)],
    collection: Collection = None,
    as_json: JsonFlag = False,
) -> None:
    """Read an archive into the collection of its own name, or another. What is there already is not read again."""
    with library_of(settings_of(context)) as library, working(f"Reading {file} …"):
        results = library.import_collection(file, collection, LOCAL_OWNER)
    report_ingest([file], results, as_json)

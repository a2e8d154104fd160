"""`folio table`: the same questions asked of every document of a shelf."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import ValidationError

from service.cli.answers import given, started
from service.cli.context import (
    LOCAL_OWNER,
    Collection,
    DeviceName,
    Drafter,
    Dtype,
    JsonFlag,
    ModelName,
    documents_of,
    settings_of,
)
from service.cli.output import console, emit_table, emit_text, note
from service.errors import Exit, InvalidRequest
from service.fields import refusal

if TYPE_CHECKING:
    from service.settings import Settings
    from service.tables.store import Row, TableHead, TableSpec, TableStore

TYPE = re.compile(r"(\d+):(text|number|date|choice)(?:=(.+))?")
LOOK_S = 1.0
SHOWN = 60
"""Characters of a cell on a terminal."""


def register(app: typer.Typer) -> None:
    """Add the command of this file."""
    app.command("table")(table)


def table(
    context: typer.Context,
    questions: Annotated[list[str] | None, typer.Argument(help="A column each.", metavar="[QUESTION]…")] = None,
    document: Annotated[
        list[str] | None, typer.Option("--document", "-d", help="A row for this id; may be repeated.")
    ] = None,
    collection: Collection = None,
    types: Annotated[
        list[str] | None,
        typer.Option("--type", help="Of a column: 2:number, 3:date or 4:choice=red,green; may be repeated."),
    ] = None,
    mode: Annotated[str | None, typer.Option(help="How each document is read: auto, long or retrieval.")] = None,
    resume: Annotated[str | None, typer.Option(help="Go on with this table; ask again what failed.")] = None,
    csv: Annotated[Path | None, typer.Option("--csv", help="Write it here as CSV.")] = None,
    xlsx: Annotated[Path | None, typer.Option("--xlsx", help="Write it here as a spreadsheet.")] = None,
    model: ModelName = None,
    dtype: Dtype = None,
    device: DeviceName = None,
    drafter: Drafter = None,
    as_json: JsonFlag = False,
) -> None:
    """Ask every document the same questions: a row a document, a cell an answer with its source, or a blank.

    Exit codes: 0 all asked, 3 a question failed. What Ctrl-C leaves, --resume goes on with.
    """
    from service.tables.export import exported
    from service.tables.scope import documents_of as documents_in
    from service.tables.store import TableStore

    settings = settings_of(context, model=model, dtype=dtype, device=device, drafter=drafter)
    if (resume is None) == (not questions):
        raise InvalidRequest("Give the questions of a new table, or --resume and the id of one.")
    spec = None if resume is not None else spec_of(questions or [], types or [], document, collection, mode)
    from service.models import check_request

    check_request(settings)
    with documents_of(settings) as shelf:
        store = TableStore(lambda: shelf.database)
        if spec is None:
            head = store.resume(LOCAL_OWNER, resume or "")
        else:
            head = store.create(LOCAL_OWNER, spec, documents_in(shelf, spec, LOCAL_OWNER))
        note(f"table {head.id}: {head.rows} documents, {len(head.spec.columns)} questions; {head.done} rows are there")
        try:
            asyncio.run(_filled(settings, store, head))
        except KeyboardInterrupt:
            note(f"To go on: folio table --resume {head.id}")
            raise
        head, rows = store.get(LOCAL_OWNER, head.id), store.rows(LOCAL_OWNER, head.id)
    for path, form in ((csv, "csv"), (xlsx, "xlsx")):
        if path is not None:
            path.write_bytes(exported(head, rows, form))  # type: ignore[arg-type]
    if as_json:
        emit_text(exported(head, rows, "json").decode() + "\n")
    elif csv is None and xlsx is None:
        show(head, rows)
    failed = sum(bool(cell["error"]) for row in rows for cell in row.cells or ())
    if failed:
        note(f"{failed} questions failed; to ask them again: folio table --resume {head.id}")
        raise typer.Exit(Exit.PARTIAL)


def spec_of(
    questions: list[str],
    types: list[str],
    documents: list[str] | None,
    collection: str | None,
    mode: str | None,
) -> TableSpec:
    """Raises InvalidRequest, in the words of the command line."""
    from service.tables.store import TableSpec

    columns: list[dict[str, Any]] = [{"question": question} for question in questions]
    for written in types:
        match = TYPE.fullmatch(written)
        if match is None or not 1 <= int(match[1]) <= len(columns):
            raise InvalidRequest(
                f"--type {written[:60]!r} names no column and its type.",
                hint=f"Write 1:number, 2:date or 3:choice=red,green for columns 1 to {len(columns)}.",
            )
        columns[int(match[1]) - 1] |= {"type": match[2]}
        if match[3]:
            columns[int(match[1]) - 1]["choices"] = [choice.strip() for choice in match[3].split(",")]
    try:
        return TableSpec.model_validate(
            {"columns": columns, **given(documents=documents, collection=collection, mode=mode)}
        )
    except ValidationError as error:
        raise refusal(error, lambda place: ".".join(str(part) for part in place)) from error


def show(head: TableHead, rows: list[Row]) -> None:
    """On the terminal: values, blanks as they are."""
    names = ["document", *(column.question for column in head.spec.columns)]
    emit_table(names, [[row.name, *(_shown(cell) for cell in row.cells or [])] for row in rows])


def _shown(cell: dict[str, Any]) -> str:
    if cell["value"] is None:
        return "–"
    text = " ".join(str(cell["value"]).split())
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 1]}…"


async def _filled(settings: Settings, store: TableStore, head: TableHead) -> None:
    """Fill a table here, or wait until the service that has it is done."""
    from service.tables.filling import TableFiller

    runtime = await started(settings)
    try:
        filler = TableFiller(store, runtime.answerer)
        done = head.done
        with console.status("") as status:

            def told() -> None:
                nonlocal done
                done += 1
                status.update(f"{done} of {head.rows} documents")
                if not console.is_terminal:
                    note(f"{done} of {head.rows} documents")

            while (head := store.get(head.owner, head.id)).status in ("queued", "running"):
                if await asyncio.to_thread(store.claim, filler.holder, head.id):
                    await filler.fill(head, told)
                else:
                    await asyncio.sleep(LOOK_S)
    finally:
        await runtime.stop()

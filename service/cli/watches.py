"""`folio watch`: questions that are asked again when documents change."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import ValidationError

from service.cli.answers import flag, given, started
from service.cli.context import (
    LOCAL_OWNER,
    Collection,
    DeviceName,
    Dtype,
    JsonFlag,
    ModelName,
    documents_of,
    settings_of,
)
from service.cli.output import emit_json, emit_table, note
from service.fields import refusal

if TYPE_CHECKING:
    from retrieval.store.shelf import Shelf
    from service.settings import Settings
    from service.watches.store import Change, Watch, WatchStore

watch = typer.Typer(name="watch", help="Questions that are asked again when documents change.", no_args_is_help=True)

WatchId = Annotated[str, typer.Argument(help="Id of a watch.", metavar="WATCH")]


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.add_typer(watch)


@watch.command("add")
def add(
    context: typer.Context,
    question: Annotated[str, typer.Argument(help="The question.", metavar="QUESTION")],
    document: Annotated[
        list[str] | None, typer.Option("--document", "-d", help="About this id alone; may be repeated.")
    ] = None,
    collection: Collection = None,
    mode: Annotated[str | None, typer.Option(help="auto, long or retrieval.")] = None,
    webhook: Annotated[str | None, typer.Option(help="URL that the service tells of each change.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Watch a question; `folio watch run` or a service asks it."""
    from service.watches.store import WatchSpec
    from service.watches.webhooks import check_url

    settings = settings_of(context)
    fields = given(documents=document, collection=collection, mode=mode, webhook=webhook)
    try:
        spec = WatchSpec.model_validate({"question": question, **fields})
    except ValidationError as error:
        raise refusal(error, flag) from error
    if webhook is not None:
        check_url(webhook, settings.webhook_private)
    with _store(settings) as (shelf, store):
        spec.check_scope(shelf, LOCAL_OWNER)
        made = store.add(LOCAL_OWNER, spec)
    if as_json:
        emit_json({"id": made.id, "secret": made.secret})
        return
    typer.echo(made.id)
    if webhook is not None:
        note(f"Secret of its signatures, shown this once: {made.secret}")


@watch.command("ls")
def ls(context: typer.Context, as_json: JsonFlag = False) -> None:
    """The watched questions and their last answers."""
    with _store(settings_of(context)) as (_, store):
        found = store.all(LOCAL_OWNER)
    if as_json:
        emit_json({"watches": [_data(one) for one in found]})
        return
    rows = [[one.id, one.spec.text, _answer(one.state)] for one in found]
    emit_table(["id", "question", "answer"], rows)


@watch.command("show")
def show(context: typer.Context, watch_id: WatchId, as_json: JsonFlag = False) -> None:
    """What became different, the newest first."""
    with _store(settings_of(context)) as (_, store):
        found, changes = store.get(LOCAL_OWNER, watch_id), store.changes(LOCAL_OWNER, watch_id)
    if as_json:
        emit_json(_data(found) | {"changes": [_change(found, one) for one in changes]})
        return
    typer.echo(f"{found.spec.text}\n{_answer(found.state)}")
    for one in changes:
        tell(found, one)


@watch.command("rm")
def rm(context: typer.Context, watch_id: WatchId) -> None:
    """Watch no longer, and forget what was found."""
    with _store(settings_of(context)) as (_, store):
        store.delete(LOCAL_OWNER, watch_id)


@watch.command("run")
def run(
    context: typer.Context,
    model: ModelName = None,
    dtype: Dtype = None,
    device: DeviceName = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until Ctrl-C.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Ask whatever is due, say what became different, and tell the webhooks."""
    settings = settings_of(context, model=model, dtype=dtype, device=device)
    from service.models import check_request

    check_request(settings)
    found = asyncio.run(_run(settings, follow, as_json))
    if not as_json and not found:
        note("Nothing became different.")


async def _run(settings: Settings, follow: bool, as_json: bool) -> int:
    from service.watches.watching import LOOK_S, Watcher

    runtime = await started(settings)
    found = 0
    try:
        store = runtime.watches
        watcher = Watcher(store, runtime.answerer, settings.webhook_private)
        while True:
            claimed = await asyncio.to_thread(store.claim, watcher.holder)
            if claimed is None:
                await watcher.deliver_all()
                if not follow:
                    return found
                await asyncio.sleep(LOOK_S)
                continue
            change = await watcher.check(claimed)
            if change is not None:
                found += 1
                emit_json(_change(claimed, change), line=True) if as_json else tell(claimed, change)
    finally:
        await runtime.stop()


def tell(watch: Watch, change: Change) -> None:
    """A change on the terminal: what had changed, the answer's words that are gone and new, the citations."""
    about = ", ".join(
        f"{one['name'] or one['document']} {'deleted' if one['deleted'] else 'version ' + str(one['version'])}"
        for one in change.documents
    )
    typer.echo(f"\n{change.at:%Y-%m-%d %H:%M} {watch.spec.text}")
    typer.echo(f"  since: {about}")
    words = "".join(
        text if how == "=" else f"[-{text}-]" if how == "-" else f"[+{text}+]"
        for how, text in change.difference["words"]
    )
    typer.echo(f"  {words}")
    for how, mark in (("gone", "-"), ("new", "+")):
        for one in change.difference[how]:
            place = f", {one['place']}" if one["place"] else ""
            typer.echo(f"  {mark} {one['name']}{place}: {' '.join(one['cited_text'].split())}")


@contextmanager
def _store(settings: Settings) -> Iterator[tuple[Shelf, WatchStore]]:
    """The documents of a data folder and its watches, for the length of a block."""
    from service.watches.store import WatchStore

    with documents_of(settings) as shelf:
        yield shelf, WatchStore(lambda: shelf.database)


def _data(watch: Watch) -> dict[str, Any]:
    return {"id": watch.id, "question": watch.spec.text, "answer": watch.state, "webhook": watch.spec.webhook}


def _change(watch: Watch, change: Change) -> dict[str, Any]:
    from service.watches.watching import change_data

    return change_data(watch, change) | {"delivery": change.delivery, "error": change.error}


def _answer(state: dict[str, Any] | None) -> str:
    return "not asked yet" if state is None else " ".join(state["answer"].split())

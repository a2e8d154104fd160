"""`folio keys`: API keys of the service."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from service.cli.context import LOCAL_OWNER, JsonFlag, library_of, settings_of
from service.cli.output import emit_json, emit_table, note

if TYPE_CHECKING:
    from service.accounts.keys import Key, KeyStore

keys = typer.Typer(help="Make, list and revoke API keys.", no_args_is_help=True, rich_markup_mode=None)


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.add_typer(keys, name="keys")


@keys.command("create")
def create(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="What the key is for.")] = "",
    owner: Annotated[str, typer.Option(help="Whose documents it sees.")] = LOCAL_OWNER,
    scope: Annotated[list[str] | None, typer.Option(help="read, write, metrics or admin; may be repeated.")] = None,
    rate: Annotated[float | None, typer.Option(help="Requests a minute.")] = None,
    concurrency: Annotated[int | None, typer.Option(help="Requests at once.")] = None,
    storage_mb: Annotated[float | None, typer.Option(help="Stored files, in MiB.")] = None,
    days: Annotated[float | None, typer.Option(help="Days until it expires.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Make a key. It is shown once; the database keeps its hash. From the first key on, every request needs one."""
    limits = {
        "rate_per_minute": rate,
        "concurrency": concurrency,
        "storage_bytes": None if storage_mb is None else storage_mb * 2**20,
    }
    given = {limit: float(value) for limit, value in limits.items() if value is not None}
    expires = None if days is None else dt.datetime.now(dt.UTC) + dt.timedelta(days=days)
    with _keys_of(context) as store:
        key, secret = store.create(owner, name, scope or ["read", "write"], given, expires)
    if as_json:
        emit_json(_key(key) | {"key": secret})
    else:
        typer.echo(secret)
        note(f"Key {key.id} for {owner!r}: it will not be shown again.")


@keys.command("list")
def list_keys(context: typer.Context, as_json: JsonFlag = False) -> None:
    """List the keys, without their secrets."""
    with _keys_of(context) as store:
        found = store.all()
    if as_json:
        emit_json({"keys": [_key(key) for key in found]})
        return
    rows = [[k.id, k.name, k.owner, " ".join(k.scopes), _state(k), k.last_used_at] for k in found]
    emit_table(["id", "name", "owner", "scopes", "state", "last used"], rows)


@keys.command("revoke")
def revoke(
    context: typer.Context,
    key_id: Annotated[str, typer.Argument(help="Id of a key.", metavar="ID")],
    as_json: JsonFlag = False,
) -> None:
    """End a key at once."""
    with _keys_of(context) as store:
        key = store.revoke(key_id)
    if as_json:
        emit_json(_key(key))
    else:
        typer.echo(f"Revoked {key.id}.")


@keys.command("audit")
def audit(
    context: typer.Context,
    limit: Annotated[int, typer.Option("--limit", min=1, max=10_000, help="How many entries.")] = 100,
    as_json: JsonFlag = False,
) -> None:
    """Show who did what to what: the newest entries of the audit log first."""
    with _keys_of(context) as store:
        found = store.audit_log(limit)
    if as_json:
        emit_json({"audit": [{**entry, "at": entry["at"].isoformat()} for entry in found]})
        return
    columns = ["at", "owner", "key_id", "action", "subject"]
    emit_table(columns, [[entry[column] for column in columns] for entry in found])


@contextmanager
def _keys_of(context: typer.Context) -> Iterator[KeyStore]:
    from service.accounts.keys import KeyStore

    settings = settings_of(context)
    with library_of(settings) as library:
        yield KeyStore(library.database, settings)


def _state(key: Key) -> str:
    if key.revoked_at is not None:
        return "revoked"
    return "active" if key.active else "expired"


def _key(key: Key) -> dict[str, Any]:
    def iso(time: dt.datetime | None) -> str | None:
        return time.isoformat() if time else None

    return {
        "id": key.id,
        "name": key.name,
        "owner": key.owner,
        "scopes": list(key.scopes),
        "limits": key.limits,
        "state": _state(key),
        "created_at": iso(key.created_at),
        "last_used_at": iso(key.last_used_at),
        "expires_at": iso(key.expires_at),
        "revoked_at": iso(key.revoked_at),
    }

"""`folio`: the command line.

Exit codes: 0 ok, 1 failed, 2 usage, 3 partial, 4 index stale, 130 interrupted. Results are on stdout (as one
JSON object with ``--json``), everything else is on stderr.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib.metadata import entry_points, version
from pathlib import Path
from typing import Annotated, Any

import typer

from service.cli import (
    answers,
    chat,
    cluster,
    collections,
    doctor,
    documents,
    indexes,
    keys,
    mcp,
    models,
    overview,
    receipts,
    serving,
    tables,
    top,
    training,
    warming,
    watches,
)
from service.cli.output import error_line, note
from service.errors import Exit, FolioError
from service.logs import configure_logging

PLUGIN_GROUP = "folio.commands"
VALUED = ("--home", "--database-url", "--log-level")
"""flags of `global_flags` that a value follows"""

app = typer.Typer(
    name="folio",
    help="Answers questions over long documents, by reading them whole or by retrieval, with checked citations.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
documents.register(app)
warming.register(documents.docs)
overview.register(documents.docs)
collections.register(app)
indexes.register(app)
answers.register(app)
receipts.register(app)
tables.register(app)
watches.register(app)
chat.register(app)
serving.register(app)
top.register(app)
mcp.register(app)
models.register(app)
cluster.register(app)
keys.register(app)
doctor.register(app)
training.register(app)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"folio {version('folio-serve')}")
        raise typer.Exit


@app.callback()
def global_flags(
    context: typer.Context,
    home: Annotated[Path | None, typer.Option(help="Data folder (FOLIO_HOME).")] = None,
    database_url: Annotated[str | None, typer.Option(help="SQLAlchemy URL (FOLIO_DATABASE_URL).")] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error.")] = None,
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Flags that every command understands."""
    context.obj = {"home": home, "database_url": database_url, "log_level": log_level}
    configure_logging(log_level or os.environ.get("FOLIO_LOG_LEVEL", "warning"))


def load_plugins(target: typer.Typer, points: Any = None) -> list[str]:
    """Add the commands that other packages register; returns a sentence for each that cannot be loaded.

    A broken plugin costs its own command, never the others.
    """
    problems = []
    for point in sorted(points if points is not None else entry_points(group=PLUGIN_GROUP), key=str):
        try:
            command = point.load()
            if not isinstance(command, typer.Typer):
                raise TypeError("it is not a typer.Typer")
            target.add_typer(command, name=point.name)
        except Exception as error:
            problems.append(f"The command {point.name!r} of {point.value} cannot be loaded: {error}.")
    return problems


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    args = list(sys.argv[1:] if arguments is None else arguments)
    for problem in _plugins_for(args):
        note(f"folio: {problem}")
    try:
        app(args, prog_name="folio", standalone_mode=True)
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except KeyboardInterrupt:
        error_line("interrupted.")
        return Exit.INTERRUPTED
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - lives until exit: nobody reads stdout any more
        return Exit.OK
    except FolioError as error:
        error_line(error.detail)
        return error.exit_code
    except Exception as error:
        known = _known(error)
        if known is not None:
            error_line(known.detail)
            return known.exit_code
        if os.environ.get("FOLIO_LOG_LEVEL") == "debug":
            raise
        error_line(f"internal error: {type(error).__name__}: {error} (FOLIO_LOG_LEVEL=debug shows where).")
        return Exit.FAILED
    return Exit.OK


def run() -> None:
    """Entry point of the `folio` script."""
    sys.exit(main())


def _plugins_for(args: Sequence[str]) -> list[str]:
    """Load plugins, unless a command of our own is asked for: they may import a great deal."""
    own = {info.name for info in app.registered_commands} | {group.name for group in app.registered_groups}
    return [] if _command_of(args) in own else load_plugins(app)


def _command_of(args: Sequence[str]) -> str | None:
    """The first argument that is neither a flag of every command nor the value of one."""
    given = iter(args)
    for arg in given:
        if not arg.startswith("-"):
            return arg
        if arg in VALUED:
            next(given, None)
    return None


def _known(error: Exception) -> FolioError | None:
    """The error as one of ours, if it comes from a package that has errors of its own."""
    from service.errors import translate

    return translate(error)


if __name__ == "__main__":
    run()

"""``folio bench NAME``: one command for each module below this package that has one, imported when it is asked for."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperGroup

import eval.bench

COMMAND = "\ncommand = bench(Options, "


class BenchGroup(TyperGroup):
    """Finds its commands among the modules of ``eval.bench``, by their text: listing them imports nothing heavy."""

    def list_commands(self, ctx: Any) -> list[str]:
        return sorted(_modules())

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        module = _modules().get(cmd_name)
        if module is None:
            return None
        single = typer.Typer(add_completion=False)
        single.command(name=cmd_name)(importlib.import_module(module).command)
        return typer.main.get_command(single)


def _modules() -> dict[str, str]:
    """The modules that are commands, by their file's name, whatever room they are in."""
    files = ((file, Path(folder)) for folder in eval.bench.__path__ for file in Path(folder).rglob("*.py"))
    commands = ((file, folder) for file, folder in files if COMMAND in file.read_text(encoding="utf-8"))
    return {
        file.stem: ".".join(("eval", "bench", *file.relative_to(folder).with_suffix("").parts))
        for file, folder in commands
    }


app = typer.Typer(cls=BenchGroup, no_args_is_help=True, help="Measure speed and memory; figures go to eval/results.")


@app.callback()
def _bench() -> None:
    """Measure speed and memory; figures go to eval/results."""

"""``folio bench NAME``: one command for each module of this package that has one, imported when it is asked for."""

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
        files = (file for folder in eval.bench.__path__ for file in Path(folder).glob("*.py"))
        return sorted(file.stem for file in files if COMMAND in file.read_text(encoding="utf-8"))

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in self.list_commands(ctx):
            return None
        single = typer.Typer(add_completion=False)
        single.command(name=cmd_name)(importlib.import_module(f"eval.bench.{cmd_name}").command)
        return typer.main.get_command(single)


app = typer.Typer(cls=BenchGroup, no_args_is_help=True, help="Measure speed and memory; figures go to eval/results.")


@app.callback()
def _bench() -> None:
    """Measure speed and memory; figures go to eval/results."""

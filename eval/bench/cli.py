"""``folio bench NAME``: one command for each module of this package that has one, imported when it is asked for.

A bench module defines ``run(...) -> dict`` (the figures) and ``command``, a function with Typer parameters
that calls it and ends in ``eval.figures.report_result``.
"""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperGroup

import eval.bench

NOT_COMMANDS = {"cli"}


class BenchGroup(TyperGroup):
    """Finds its commands among the modules of ``eval.bench``."""

    def list_commands(self, ctx: Any) -> list[str]:
        names = (module.name for module in pkgutil.iter_modules(eval.bench.__path__))
        return sorted(
            name for name in names if name not in NOT_COMMANDS and not name.startswith("_") and _has_command(name)
        )

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in self.list_commands(ctx):
            return None
        module = importlib.import_module(f"eval.bench.{cmd_name}")
        single = typer.Typer(add_completion=False)
        single.command(name=cmd_name, help=module.command.__doc__ or module.__doc__)(module.command)
        return typer.main.get_command(single)


def _has_command(name: str) -> bool:
    """Whether the module defines ``command``: read from its text, so that listing imports nothing heavy."""
    source = Path(eval.bench.__path__[0]) / f"{name}.py"
    return source.is_file() and "\ndef command(" in source.read_text(encoding="utf-8")


app = typer.Typer(cls=BenchGroup, no_args_is_help=True, help="Measure speed and memory; figures go to eval/results.")


@app.callback()
def _bench() -> None:
    """Measure speed and memory; figures go to eval/results."""

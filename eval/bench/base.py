"""What every benchmark is: options, a run that makes figures of them, and a file and tables that show the figures."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import torch
import typer
from typer import Argument, Option

from eval.bench.timer import ceilings
from eval.errors import EvalError
from eval.figures import RESULTS, command_line, named, save_result
from eval.options import Separated, command, read
from service.cli.output import emit_json

Figures = dict[str, Any]
Row = dict[str, Any]
_UNSHOWN = {"command", "git"}  # of rows that were measured at different times

Model = Annotated[str, Option("--model", "-m", help="embedded, a checkpoint's folder, or a hub id.")]
Lengths = Annotated[tuple[int, ...], Separated(), Option(help="Prompt lengths, separated by commas.")]
Policies = Annotated[tuple[str, ...], Separated(";"), Option(help="Attention policies, separated by semicolons.")]
NewTokens = Annotated[int, Option(min=2, help="Tokens decoded after each prompt.")]
Repeats = Annotated[int, Option(min=1, help="Runs of each, in turn; the medians count.")]
Rounds = Annotated[int, Option(min=1, help="Rounds in which all that is compared takes turns.")]
Seed = Annotated[int, Option(help="Of everything that is drawn.")]
Threads = Annotated[int, Option(min=0, help="CPU threads; 0 leaves it to torch.")]
Squad = Annotated[
    Path, Argument(help="Paragraphs and questions: a file of SQuAD's format.", exists=True, dir_okay=False)
]
Texts = Annotated[tuple[Path, ...], Option(help="Folder of texts, before the default ones; may be repeated.")]


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """What every benchmark can be told."""

    output: Annotated[Path | None, Option(help="File for the figures; by default one in eval/results.")] = None
    as_json: Annotated[bool, Option("--json", help="Print the figures as JSON.")] = False

    def told(self, *names: str) -> Figures:
        """Some of the options, for the figures, without folders of this machine."""
        given = {name: getattr(self, name) for name in names}
        return {name: named(value) if isinstance(value, str) else value for name, value in given.items()}


@dataclass(frozen=True, kw_only=True)
class ThreadedOptions(BenchOptions):
    """Of a benchmark that computes in this process."""

    threads: Threads = 0


Given = TypeVar("Given", bound=BenchOptions)


@dataclass(frozen=True)
class Result:
    """The file that a benchmark's figures go to.

    Attributes:
        name: of the result, and of its file in eval/results where no other is given.
    """

    name: str
    output: Path | None = None

    def earlier(self) -> Figures | None:
        """The figures that the file has, None where there is none.

        Raises:
            EvalError: it is no file of this benchmark's.
        """
        path = self.output or RESULTS / f"{self.name}.json"
        if not path.is_file():
            return None
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            if record["name"] != self.name:
                raise EvalError(f"{path} holds figures of {record['name']}, not of {self.name}")
            return record["figures"]  # type: ignore[no-any-return]
        except (ValueError, KeyError, TypeError) as error:
            raise EvalError(f"{path} holds no figures of {self.name}: {error!r}") from error

    def save(self, figures: Figures) -> Path:
        """Write the figures, with the command and the machine that made them."""
        return save_result(self.name, figures, command_line(), self.output)


def bench(
    options: type[Given],
    run: Callable[[Given], Figures | None],
    name: str | Callable[[Given, Figures], str],
    table: Callable[[Figures], list[Row]] | None = None,
    verdict: Callable[[Figures], bool] | None = None,
) -> Callable[..., None]:
    """The command of a benchmark: run it with what was typed, save the figures, show them.

    One that computes in this process shows and saves what the machine reaches first: its figures are fractions of that.

    Args:
        options: its flags; the docstring is its help.
        run: gives the figures, or None where the time was up before all was done.
        name: of the result.
        table: rows to print where the figures are not lists of rows themselves.
        verdict: whether the command succeeds.
    """

    def act(typed: dict[str, Any]) -> None:
        given = read(options, typed)
        if isinstance(given, ThreadedOptions) and given.threads:
            torch.set_num_threads(given.threads)
        limits = [ceilings()] if isinstance(given, ThreadedOptions) else []
        if limits and not given.as_json:
            show({"ceilings": limits})
        figures = run(given)
        if figures is None:
            typer.echo("not finished; run the same command again to go on", err=True)
            raise typer.Exit(3)
        if limits:
            figures = {**figures, "ceilings": limits}
        result = Result(name if isinstance(name, str) else name(given, figures), given.output)
        path = result.save(figures)
        if given.as_json:
            emit_json(result.earlier())
        else:
            own = {name: rows for name, rows in figures.items() if name != "ceilings"}
            show({"rows": table(figures)} if table is not None else own)
            typer.echo(f"figures written to {path}")
        if verdict is not None and not verdict(figures):
            raise typer.Exit(1)

    return command(options, act)


class Cells:
    """Rows of figures under keys, kept as they come: a table that can be made in pieces.

    Attributes:
        rows: what a run before left, and what this one adds.
    """

    def __init__(self, rows: list[Row], keep: Callable[[], object] = lambda: None) -> None:
        self.rows, self._keep = rows, keep

    def at(self, **place: Any) -> list[Row]:
        """The rows of that place."""
        return [row for row in self.rows if all(row.get(key) == value for key, value in place.items())]

    def add(self, *rows: Row) -> None:
        self.rows += rows
        self._keep()


def show(figures: Figures) -> None:
    """Print each list of rows as a table, without what is no plain value."""
    for name, rows in figures.items():
        if isinstance(rows, list) and rows and all(isinstance(row, dict) for row in rows):
            named = [key for key in dict.fromkeys(key for row in rows for key in row) if key not in _UNSHOWN]
            columns = [key for key in named if _plain([row.get(key) for row in rows])]
            lines = [columns, *([_cell(row.get(column)) for column in columns] for row in rows)]
            widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
            typer.echo(f"\n{name}")
            for line in lines:
                typer.echo("  ".join(map(str.ljust, line, widths)).rstrip())


def _plain(values: Sequence[Any]) -> bool:
    return all(isinstance(value, int | float | str | None) for value in values)


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)

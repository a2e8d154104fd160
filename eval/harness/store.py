"""A folder of results: rows as they come, the arguments they were made with, and the summary.

    DIR/run.json                           the arguments that every row shares
    DIR/ENGINE/preds_TASK[_LENGTH].jsonl   {id, prediction, ground_truth}: what the official script reads
    DIR/ENGINE/samples_TASK[_LENGTH].jsonl scores by every scorer, token ids, subgroups, errors
    DIR/ENGINE/speed_TASK[_LENGTH].jsonl   times and counters
    DIR/results.json                       the summary of everything in the folder

`preds` and `samples` hold nothing that a second run would measure differently: a run that was killed and
resumed leaves the same bytes as one that was not. A row is in `preds` only after it is in the other two.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from eval.errors import EvalError
from eval.figures import write_atomically
from eval.harness.engines import folder_name
from eval.harness.jsonl import JsonlAppender, Problem, read_jsonl

KINDS = ("speed", "samples", "preds")  # in the order in which a row is written
FORMAT = 1
"""Of results.json; raised when what it says is to be read otherwise."""


@dataclass(frozen=True)
class Cell:
    """One engine on one task at one length (None: the task's own)."""

    engine: str
    task: str
    length: int | None

    @property
    def stem(self) -> str:
        return self.task if self.length is None else f"{self.task}_{self.length}"

    @property
    def title(self) -> str:
        return f"{self.engine} {self.task}" + (f" {self.length}" if self.length else "")


class Rows:
    """The three files of a cell, opened where an earlier run stopped."""

    def __init__(self, folder: Path, cell: Cell) -> None:
        self.paths = paths_of(folder, cell)
        self.done = self._align()
        self._files = [JsonlAppender(self.paths[kind]) for kind in KINDS]

    def append(self, speed: dict[str, Any], sample: dict[str, Any], prediction: dict[str, Any]) -> None:
        """Write one row to the three files; raises EvalError when the disk refuses it."""
        for file, row in zip(self._files, (speed, sample, prediction), strict=True):
            file.append(row)

    def __enter__(self) -> Rows:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in self._files:
            file.close()

    def samples(self) -> list[dict[str, Any]]:
        """The rows written so far, by this run and earlier ones."""
        return read_rows(self.paths["samples"])

    def _align(self) -> list[Any]:
        """Ids of the rows that all three files hold; what goes beyond them is cut off."""
        lines = {kind: _whole_lines(path) for kind, path in self.paths.items()}
        count = min(map(len, lines.values()))
        for kind, path in self.paths.items():
            if path.exists():
                os.truncate(path, sum(map(len, lines[kind][:count])))
        return [json.loads(line)["id"] for line in lines["preds"][:count]]


def paths_of(folder: Path, cell: Cell) -> dict[str, Path]:
    """The three files of a cell, by kind."""
    return {kind: folder / folder_name(cell.engine) / f"{kind}_{cell.stem}.jsonl" for kind in KINDS}


def read_rows(path: Path) -> list[dict[str, Any]]:
    """All rows of a results file.

    Raises:
        EvalError: the file is missing or has a broken line (the harness itself never leaves one).
    """
    problems: list[Problem] = []
    rows = [row for _, row in read_jsonl(path, problems)]
    if problems:
        raise EvalError(f"{path}, line {problems[0].line}: {problems[0].message}", hint="Run the same command again.")
    return rows


def claim(folder: Path, arguments: dict[str, Any]) -> None:
    """Make the folder this run's, or check that an earlier run there had the same arguments.

    Raises:
        EvalError: it holds rows made with other arguments, or by another version, which must not be mixed.
    """
    if (folder / "results.json").exists():
        load_summary(folder)
    path = folder / "run.json"
    if path.exists():
        before = _read_json(path)
        differing = sorted(k for k in before.keys() | arguments.keys() if before.get(k) != arguments.get(k))
        if differing:
            key = differing[0]
            raise EvalError(
                f"{folder} holds a run with {key}={before.get(key)!r}, not {arguments.get(key)!r}",
                hint="Give another --output, or the same arguments to resume.",
                param="output",
            )
        return
    write_atomically(path, json.dumps(arguments, indent=1, ensure_ascii=False) + "\n")


def save_summary(folder: Path, summary: dict[str, Any]) -> Path:
    """Write results.json; the cells of engines, tasks and lengths that this run did not touch stay."""
    path = folder / "results.json"
    before = load_summary(folder) if path.exists() else {"cells": [], "engines": {}}
    cells = {cell_key(cell): cell for cell in (*before["cells"], *summary["cells"])}
    whole = {**summary, "engines": before["engines"] | summary["engines"], "cells": list(cells.values())}
    write_atomically(path, json.dumps(whole, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    return path


def load_summary(folder: Path) -> dict[str, Any]:
    """Read results.json.

    Raises:
        EvalError: it is not there, or of another version.
    """
    path = folder / "results.json"
    summary = _read_json(path)
    if summary.get("format") != FORMAT:
        raise EvalError(
            f"{path} is of format {summary.get('format')}, and this Folio reads {FORMAT}",
            hint="Measure again into another --output.",
        )
    return summary


def load_summaries(folder: Path) -> dict[str, dict[str, Any]]:
    """The summaries of a folder by the name of their models' folders; of one model's own folder, by none.

    Raises:
        EvalError: there is none, or one of another version.
    """
    found = {path.parent.name: load_summary(path.parent) for path in sorted(folder.glob("*/results.json"))}
    if found and not (folder / "results.json").exists():
        return found
    return {"": load_summary(folder), **found}


def cell_key(cell: dict[str, Any]) -> tuple[str, str, int | None]:
    """What identifies a cell of the summary."""
    return cell["engine"], cell["task"], cell["length"]


def _whole_lines(path: Path) -> list[bytes]:
    """The lines of a file, without a last one that lacks its newline; none where there is no file."""
    if not path.exists():
        return []
    with path.open("rb") as file:
        return [line for line in file if line.endswith(b"\n")]


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise EvalError(f"cannot read {path}: {error.strerror}", hint="Is it a folder of `folio eval run`?") from error
    except json.JSONDecodeError as error:
        raise EvalError(f"{path} is not JSON: {error}", hint="Run `folio eval run` on this folder again.") from error

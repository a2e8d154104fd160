"""Prompts of Spec-Bench and SPEED-Bench: rows of a category and the user's turns, as JSON lines or as Parquet."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from eval.errors import EvalError
from eval.harness.jsonl import Problem, read_jsonl

PLACEHOLDER = "FULL BENCHMARK DATA SHOULD BE FETCHED FROM THE SOURCE"
"""What stands in SPEED-Bench's published rows for prompts of other data sets."""


def first_turns(path: Path, categories: Sequence[str]) -> list[str]:
    """The first turns of the prompts of some categories, in the order of the file.

    Raises:
        EvalError: there is no file, none of these categories is in it, a row has no category or no turns, or one of
            them SPEED-Bench's placeholder.
    """
    if not path.is_file():
        raise EvalError(f"there is no {path}", hint="Give Spec-Bench's or SPEED-Bench's file with --spec-bench.")
    found, seen = [], set()
    for number, row in _rows(path):
        category, turns = row.get("category"), row.get("turns")
        if not isinstance(category, str) or turns is None or not len(turns) or not isinstance(turns[0], str):
            raise EvalError(f"row {number} of {path} has no category or no turns", hint="Is it a file of Spec-Bench?")
        seen.add(category)
        if category not in categories:
            continue
        if turns[0].startswith(PLACEHOLDER):
            raise EvalError(
                f"row {number} of {path} has a placeholder for its prompt",
                hint="Put SPEED-Bench's data together first, with the prepare_data.py of NVIDIA's specdec_bench.",
            )
        found.append(turns[0])
    if not found:
        raise EvalError(f"{path} has no prompts of {', '.join(categories)}", hint=f"It has {', '.join(sorted(seen))}.")
    return found


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Numbers from 1 and rows. Raises EvalError for a row that is not JSON, or no Parquet."""
    if path.suffix == ".parquet":
        yield from enumerate(_parquet(path), start=1)
        return
    problems: list[Problem] = []
    for number, row in read_jsonl(path, problems):
        if problems:
            break
        yield number, row
    if problems:
        raise EvalError(f"line {problems[0].line} of {path}: {problems[0].message}")


def _parquet(path: Path) -> list[dict[str, Any]]:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise EvalError(f"{path} is Parquet", hint="pip install pyarrow, or give the rows as JSON lines.") from error
    try:
        return parquet.read_table(path).to_pylist()  # type: ignore[no-any-return]
    except (OSError, ValueError) as error:
        raise EvalError(f"{path} is no Parquet: {error}") from error

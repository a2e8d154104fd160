"""LongBench v2 (Bai et al. 2024, arXiv 2412.15204) and LongBench Pro (Chen et al. 2026, arXiv 2601.02872).

Each is one JSON file, a list of rows, of half a gigabyte, and is read row by row: questions with four choices; 25 tasks
in English and Chinese. Pro's two tasks of summaries are left out: half of their metric is a model of embeddings.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from eval.errors import EvalError
from eval.harness.jsonl import Problem
from eval.scoring.longbench_pro import METRICS
from eval.tasks.example import Example

CHUNK = 1 << 20
NEW_TOKENS = {"longbench_v2": 128, "longbench_pro": 1024}
_FILES = {"longbench_v2": "LongBench v2's data.json", "longbench_pro": "LongBench Pro's longbench_pro.json"}
_SUMMARIES = "T4"
_GROUPS = ("token_length", "difficulty", "language", "primary_task", "contextual_requirement")


def load_v2(path: Path, problems: list[Problem]) -> Iterator[Example]:
    """Yield the questions of LongBench v2.

    Args:
        problems: receives rows that lack a field, which are skipped; line numbers count rows.

    Raises:
        EvalError: the file is missing, no JSON list, truncated, or holds no row of LongBench v2.
    """
    return _examples("longbench_v2", path, problems, _v2)


def load_pro(path: Path, problems: list[Problem]) -> Iterator[Example]:
    """Yield the rows of LongBench Pro but its summaries, asked without room to think; as `load_v2`.

    The label is ``{"task": the secondary task, "answer": its lines}``, for `eval.scoring.longbench_pro`.
    """
    return _examples("longbench_pro", path, problems, _pro)


LOADERS: dict[str, Callable[[Path, list[Problem]], Iterator[Example]]] = {
    "longbench_v2": load_v2,
    "longbench_pro": load_pro,
}


def _v2(row: dict[str, Any], number: int) -> Example:
    options = tuple(row[f"choice_{letter}"] for letter in "ABCD")
    groups: dict[str, Any] = {key: row[key] for key in ("difficulty", "length", "domain") if key in row}
    return Example(
        row.get("_id", number), "longbench_v2", row["context"], row["question"], row["answer"], options, groups=groups
    )


def _pro(row: dict[str, Any], number: int) -> Example | None:
    """None for a summary."""
    task, answer = row["secondary_task"], row["answer"]
    if task.startswith(_SUMMARIES):
        return None
    if task not in METRICS:
        raise TypeError(f"a task that is known: {task!r}")
    if not isinstance(answer, list) or not answer:
        raise TypeError("a list of answers")
    label = {"task": task, "answer": answer}
    groups: dict[str, Any] = {key: row[key] for key in _GROUPS if key in row}
    question = row["question_nonthinking"]
    return Example(row.get("id", number), "longbench_pro", row["context"], question, label, (), groups=groups)


def _examples(
    task: str, path: Path, problems: list[Problem], made: Callable[[dict[str, Any], int], Example | None]
) -> Iterator[Example]:
    found, file = 0, _FILES[task]
    name = file.partition("'s ")[0]
    for number, row in enumerate(_rows(path, file), start=1):
        try:
            example = made(row, number)
        except (KeyError, TypeError, AttributeError) as error:
            problems.append(Problem(number, f"a row of {name} lacks {error}, skipped"))
            continue
        if example is not None:
            found += 1
            yield example
    if not found:
        raise EvalError(f"{path} holds no row of {name}", hint=f"Give {file}.")


def _rows(path: Path, wanted: str) -> Iterator[dict[str, Any]]:
    decoder = json.JSONDecoder()
    try:
        file = path.open(encoding="utf-8")
    except OSError as error:
        raise EvalError(f"cannot read {path}: {error.strerror}", hint=f"Give {wanted}.") from error
    with file:
        text = file.read(CHUNK).lstrip().removeprefix("\ufeff")
        if not text.startswith("["):
            raise EvalError(f"{path} is not a JSON list", hint=f"Give {wanted}.")
        text, step = text[1:], CHUNK
        while True:
            text = text.lstrip(" \t\r\n,")
            if text.startswith("]"):
                return
            try:
                row, end = decoder.raw_decode(text)
            except json.JSONDecodeError as error:
                more = file.read(step)
                if not more:
                    raise EvalError(f"{path} ends in the middle of a row", hint="Download it again.") from error
                text, step = text + more, 2 * step
                continue
            yield row
            text, step = text[end:], CHUNK

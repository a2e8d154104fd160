"""LongBench v2 (Bai et al. 2024) from its one JSON file: a list of questions with four choices each."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from eval.errors import EvalError
from eval.harness.jsonl import Problem
from eval.tasks.example import Example

CHUNK = 1 << 20
MAX_NEW_TOKENS = 128


def load(path: Path, problems: list[Problem]) -> Iterator[Example]:
    """Yield the examples, reading the list row by row (the file has half a gigabyte).

    Args:
        problems: receives rows that lack a field, which are skipped; line numbers count rows.

    Raises:
        EvalError: the file is missing, no JSON list, truncated, or holds no row of LongBench v2.
    """
    found = 0
    for number, row in enumerate(_rows(path), start=1):
        try:
            options = tuple(row[f"choice_{letter}"] for letter in "ABCD")
            groups: dict[str, Any] = {key: row[key] for key in ("difficulty", "length", "domain") if key in row}
            yield Example(
                row.get("_id", number), "longbench_v2", row["context"], row["question"], row["answer"], options,
                groups=groups,
            )  # fmt: skip
            found += 1
        except (KeyError, TypeError) as error:
            problems.append(Problem(number, f"a row of LongBench v2 lacks {error}, skipped"))
    if not found:
        raise EvalError(f"{path} holds no row of LongBench v2", hint="Give LongBench v2's data.json.")


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    decoder = json.JSONDecoder()
    try:
        file = path.open(encoding="utf-8")
    except OSError as error:
        raise EvalError(f"cannot read {path}: {error.strerror}", hint="Give LongBench v2's data.json.") from error
    with file:
        text = file.read(CHUNK).lstrip().removeprefix("\ufeff")
        if not text.startswith("["):
            raise EvalError(f"{path} is not a JSON list", hint="Give LongBench v2's data.json.")
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

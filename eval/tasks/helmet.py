"""HELMET (Yen et al. 2024, arXiv 2410.02694): the tasks whose data are files of its own, by its prompts.

A file of its release's ``data/`` is given whole, JSON lines: ``json_kv`` (a value of a JSON object), ``ruler`` (RULER's
needles, as HELMET keeps them) or ``rag`` (``kilt``: a question over passages). The other tasks are put together from
sets of others as they run, and have no files. Its figures put two demonstrations before a question: json_kv's rows have
them, and so they are given; those of ``rag`` are in other files, and none are.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from eval.errors import EvalError
from eval.harness.jsonl import Problem, read_jsonl
from eval.tasks.example import Example

NEW_TOKENS = {"helmet_json_kv": 100, "helmet_ruler": 128, "helmet_rag": 20}
DEMONSTRATIONS = 2
_PASSAGE = "Document (Title: {title}): {text}"


def load(task: str, path: Path, problems: list[Problem]) -> Iterator[Example]:
    """The examples of a file, in its order.

    Args:
        task: of `NEW_TOKENS`.
        problems: receives the broken lines and rows that are none of the task's, which are skipped.

    Raises:
        EvalError: the file is missing, or holds no row of the task.
    """
    found = 0
    for position, (line, row) in enumerate(read_jsonl(path, problems)):
        try:
            example = _MADE[task](row, row.get("id", position))
        except (KeyError, TypeError, IndexError, ValueError) as error:
            problems.append(Problem(line, f"a row of HELMET's {task.removeprefix('helmet_')} lacks {error}, skipped"))
            continue
        found += 1
        yield example
    if not found:
        raise EvalError(f"{path} holds no row of {task}", hint="Give one of the files of HELMET's data for this task.")


def _json_kv(row: dict[str, Any], number: Any) -> Example:
    shown = "\n\n".join(f"Key: {key}\nCorresponding value: {value}" for key, value in row["demos"][:DEMONSTRATIONS])
    asked = f"{shown}\n\nKey: {row['question']}\nCorresponding value:"
    question = f"What is the value of the key {row['question']}?"
    return Example(number, "helmet_json_kv", _text(row["context"]), asked, _texts(row["answer"]), (), question)


def _rag(row: dict[str, Any], number: Any) -> Example:
    passages = "\n\n".join(_PASSAGE.format(**passage) for passage in row["ctxs"])
    asked = f"Question: {_text(row['question'])}\nAnswer:"
    return Example(number, "helmet_rag", passages, asked, _texts(row["answers"]), (), row["question"])


def _ruler(row: dict[str, Any], number: Any) -> Example:
    """RULER's needles, of which HELMET keeps the query apart; other kinds of it are asked as they stand."""
    answers = _texts(row["answer"] if "answer" in row else row["outputs"])
    query = row["query"] if "query" in row else row["question"]
    if "type_needle_v" not in row:
        return Example(number, "helmet_ruler", _text(row["context"]), _text(query), answers)
    kind, several = row["type_needle_v"], len(answers) > 1
    hidden = f"Some special magic {kind} are" if several else f"A special magic {kind} is"
    context = (
        f"{hidden} hidden within the following text. Make sure to memorize it. I will quiz you about the {kind} "
        f"afterwards.\n{_text(row['context'])}"
    )
    named = f"the special magic {kind} for {query} mentioned in the provided text"
    question = f"What {'are all' if several else 'is'} {named}?"
    asked = f"{question}\n{named.capitalize()} {'are' if several else 'is'}"
    return Example(number, "helmet_ruler", context, asked, answers, (), question)


_MADE: dict[str, Callable[[dict[str, Any], Any], Example]] = {
    "helmet_json_kv": _json_kv,
    "helmet_rag": _rag,
    "helmet_ruler": _ruler,
}


def holds_one(prediction: str, label: Any) -> float:
    """1 if one of the accepted answers occurs in the prediction, both as SQuAD normalises them (substring match)."""
    said = _normalised(prediction)
    return float(any(_normalised(one) in said for one in label))


def _normalised(text: str) -> str:
    kept = "".join(character for character in text.lower() if character not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", kept).split())


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"text, and has {type(value).__name__}")
    return value


def _texts(value: Any) -> list[str]:
    found = [_text(one) for one in (value if isinstance(value, list) else [value])]
    if not found:
        raise ValueError("an answer")
    return found

"""InfiniteBench's twelve tasks: their files, their ground truths, their subgroups.

Zhang et al. 2024, "∞Bench: Extending Long Context Evaluation Beyond 100K Tokens"; data and official script:
OpenBMB/InfiniteBench at commit 88b3daa, data set xinrongzhang2022/InfiniteBench.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from eval.errors import EvalError
from eval.harness.jsonl import Problem, read_jsonl
from eval.tasks.example import Example

HUB = "xinrongzhang2022/InfiniteBench"
VERSION = "88b3daa"
MAX_NEW_TOKENS = {
    "passkey": 6,
    "number_string": 12,
    "kv_retrieval": 50,
    "longbook_sum_eng": 1200,
    "longbook_choice_eng": 40,
    "longbook_qa_eng": 40,
    "longbook_qa_chn": 40,
    "longdialogue_qa_eng": 40,
    "math_find": 3,
    "math_calc": 30000,
    "code_run": 5,
    "code_debug": 5,
}
MATH_FIND_KINDS = (
    "largest number",
    "second largest number",
    "third largest number",
    "smallest number",
    "second smallest number",
    "third smallest number",
    "median",
)
CODE_RUN_CALLS = (2, 4, 6, 8, 10)
_LETTERS = "ABCD"


def load(task: str, source: str, problems: list[Problem]) -> Iterator[Example]:
    """Yield the examples of one task, one in memory at a time.

    Args:
        source: a folder with the official ``TASK.jsonl``, or ``hub`` for the Hugging Face hub.
        problems: receives the broken lines and unusable rows, which are skipped.

    Raises:
        EvalError: unknown task, missing file, or no hub.
    """
    if task not in MAX_NEW_TOKENS:
        raise EvalError(f"InfiniteBench has no task {task!r}", hint=f"It has {', '.join(MAX_NEW_TOKENS)}.")
    rows = _hub_rows(task) if source == "hub" else read_jsonl(Path(source) / f"{task}.jsonl", problems)
    for position, (line, row) in enumerate(rows):
        try:
            yield to_example(task, row, position)
        except EvalError as error:
            problems.append(Problem(line, error.message))


def to_example(task: str, row: dict[str, Any], position: int) -> Example:
    """An official row as an Example; the original synthetic tasks order their rows by subgroup."""
    number = row.get("id", position)
    context = row.get("context", row.get("content"))
    if not isinstance(context, str) or not isinstance(row.get("input", ""), str) or "answer" not in row:
        raise EvalError(f"row {number} of {task} lacks context, input or answer, or has them of an odd type")
    return Example(
        id=number,
        task=task,
        context=context,
        input=row.get("input", ""),
        answer=ground_truth(task, row),
        options=tuple(str(option) for option in row.get("options") or ()),
        groups=_groups(task, position),
    )


def ground_truth(task: str, row: dict[str, Any]) -> Any:
    """The answer as the official predictions file has it: [text, letter] for tasks with options."""
    answer = row["answer"]
    if task not in ("code_debug", "longbook_choice_eng"):
        if not isinstance(answer, str | int | float | list) or isinstance(answer, bool):
            raise EvalError(f"an answer of {task} cannot be of type {type(answer).__name__}")
        return answer
    options = list(row.get("options") or ())
    if isinstance(answer, list) and len(answer) == 2 and answer[1] in _LETTERS:
        return answer
    text = answer[0] if isinstance(answer, list) and len(answer) == 1 else answer
    if not isinstance(text, str) or text not in options[: len(_LETTERS)]:
        raise EvalError(f"the answer {str(answer)[:60]!r} of {task} is none of its four options")
    return [text, _LETTERS[options.index(text)]]


def _groups(task: str, position: int) -> dict[str, Any]:
    if task in ("passkey", "number_string"):
        return {"depth": round(position // 10 / 58, 3)}  # 59 depths, ten examples each
    if task == "kv_retrieval":
        return {"depth": round(position // 50 / 10, 1)}
    if task == "math_find":
        return {"kind": MATH_FIND_KINDS[min(position // 50, 6)]}
    if task == "code_run":
        return {"calls": CODE_RUN_CALLS[min(position // 80, 4)]}
    return {}


def _hub_rows(task: str) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        import datasets
    except ImportError as error:
        raise EvalError("the hub needs the package datasets", hint="pip install datasets, or give a folder.") from error
    try:
        rows = datasets.load_dataset(HUB, data_files=f"{task}.jsonl", split="train", streaming=True)
        yield from enumerate((dict(row) for row in rows), start=1)
    except Exception as error:  # the hub's client raises what its transport raises
        raise EvalError(
            f"cannot read {HUB} ({task}.jsonl): {error}",
            hint="Download the files once and give their folder with --data.",
        ) from error

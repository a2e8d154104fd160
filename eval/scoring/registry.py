"""Which scorer belongs to which task and version, and the score of a whole file of predictions."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eval.errors import EvalError
from eval.harness.jsonl import Problem, read_jsonl
from eval.scoring import fixed, official, references

SCORERS = ("official_v1", "official_v2", "fixed")
_VERSIONS = {"official_v1": official.V1, "official_v2": official.V2, "fixed": fixed.FIXED}
STYLED = ("passkey", "number_string", "kv_retrieval", "math_find", "math_calc", "code_run")


def tasks_of() -> list[str]:
    """Every task that can be scored."""
    return [*official.V1, *(f"{name}-style" for name in STYLED), *references.SINGLE]


def score_one(task: str, scorer: str, prediction: Any, label: Any, *, model_name: str = "") -> float:
    """Score of one prediction in [0, 1].

    Args:
        task: a name of `tasks_of`; generated "-style" tasks are scored as the tasks they imitate.
        scorer: a name of `SCORERS`; tasks with one rule only ignore it.
        prediction: text; numbers and None are read as their text and as "".
        label: the ground truth as the task's file has it.
        model_name: "gpt4" makes the official scorers drop math_calc's first number, as the official script does.

    Raises:
        EvalError: unknown task or scorer, or a prediction or label of a type that the task cannot have.
    """
    function = _function(task, scorer)
    text = _text(prediction)
    try:
        if function is official.math_calc:
            return official.math_calc(text, label, first_is_operand=model_name == "gpt4")
        return function(text, label)
    except (TypeError, ValueError, IndexError, KeyError, AttributeError) as error:
        raise EvalError(
            f"a label of task {task} cannot be {str(label)[:80]!r} ({type(label).__name__})",
            hint="Check that the file belongs to this task.",
        ) from error


@dataclass(frozen=True)
class ScoredFile:
    """The score of a file of predictions, in percent, over every record that it holds."""

    task: str
    scorer: str
    ids: list[Any]
    per_example: list[float]
    problems: list[Problem] = field(default_factory=list)

    @property
    def n(self) -> int:
        return len(self.per_example)

    @property
    def score(self) -> float:
        return sum(self.per_example) / self.n

    def as_json(self) -> dict[str, Any]:
        return {
            "task": self.task,
            "scorer": self.scorer,
            "n": self.n,
            "score": self.score,
            "per_example": self.per_example,
            "ids": self.ids,
            "problems": [problem.as_json() for problem in self.problems],
        }


def score_file(path: Path, task: str, scorer: str, *, model_name: str | None = None) -> ScoredFile:
    """Score a predictions file (`prediction`/`pred` against `ground_truth`/`label`), reading it as a stream.

    A record that cannot be scored counts 0 and is named in `problems`; so is every broken line.

    Args:
        model_name: as in `score_one`; by default the name of the file's folder, the official script's layout.
    """
    _function(task, scorer)
    model_name = path.resolve().parent.name if model_name is None else model_name
    problems: list[Problem] = []
    ids: list[Any] = []
    values: list[float] = []
    for line, row in read_jsonl(path, problems):
        ids.append(row.get("id", len(ids)))
        try:
            prediction, label = _field(row, "prediction", "pred"), _field(row, "ground_truth", "label")
            values.append(100 * score_one(task, scorer, prediction, label, model_name=model_name))
        except EvalError as error:
            problems.append(Problem(line, f"scored 0: {error.message}"))
            values.append(0.0)
    if not values:
        raise EvalError(f"{path} holds no predictions", hint="It may be empty, or not a file of JSON lines.")
    return ScoredFile(task, scorer, ids, values, problems)


def _function(task: str, scorer: str) -> official.Scorer:
    if scorer not in SCORERS:
        raise EvalError(f"unknown scorer {scorer!r}", hint=f"Choose one of {', '.join(SCORERS)}.", param="scorer")
    if task not in tasks_of():
        raise EvalError(f"unknown task {task!r}", hint=f"Choose one of {', '.join(tasks_of())}.", param="task")
    return references.SINGLE.get(task) or _VERSIONS[scorer][task.removesuffix("-style")]


def _field(row: dict[str, Any], *names: str) -> Any:
    for name in names:
        if name in row:
            return row[name]
    raise EvalError(f"the record has no field {' or '.join(names)}")


def _text(prediction: Any) -> str:
    if prediction is None:
        return ""
    if isinstance(prediction, str):
        return prediction
    if isinstance(prediction, int | float) and not isinstance(prediction, bool):
        return str(prediction)
    raise EvalError(f"a prediction cannot be of type {type(prediction).__name__}")

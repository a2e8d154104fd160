"""One example of a task, however it came about."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Example:
    """A question over a long context, and its answer.

    Attributes:
        id: unique within its task; results are paired by it.
        task: InfiniteBench's task name, a generated task's name with "-style", or a name of its own.
        context: the long text.
        input: the question in the words of the benchmark.
        answer: the ground truth as the official script's `get_answer` gives it.
        options: the texts of the options A, B, C, D, where there are any.
        question: the question for a layout that gets the context as a document; `input` where empty.
        groups: what subgroup scores are made by, such as {"depth": 0.25}.
    """

    id: int | str
    task: str
    context: str
    input: str
    answer: Any
    options: tuple[str, ...] = ()
    question: str = ""
    groups: dict[str, Any] = field(default_factory=dict)

    @property
    def base_task(self) -> str:
        """The InfiniteBench task that a "-style" task imitates; the name itself otherwise."""
        return self.task.removesuffix("-style")

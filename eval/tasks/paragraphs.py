"""RULER's two tasks of questions, in the manner of SQuAD and HotpotQA, over the paragraphs of a file of SQuAD's format.

The paragraphs that answer stand among others of the file: one question in `qa_1`; two in `qa_2`, whose answers are in
two paragraphs and must both be given.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

from eval.errors import EvalError
from eval.qa import dataset
from eval.qa.dataset import Dataset, Item
from eval.tasks.example import Example

QUESTIONS = {"qa_1-style": 1, "qa_2-style": 2}


@dataclass(frozen=True)
class ParagraphQuestions:
    """Makes examples of `size` paragraphs that do not answer and those that do, the first of these at `depth`."""

    task: str
    data: Dataset

    @classmethod
    def of_file(cls, task: str, path: Path) -> ParagraphQuestions:
        """Raises EvalError for a file of another format, or without answers."""
        data = dataset.load(path)
        if not any(item.answers for item in data.items):
            raise EvalError(
                f"{path} holds no questions with answers", hint="Give a file of SQuAD's format with --text."
            )
        return cls(task, data)

    def __call__(self, rng: random.Random, size: int, depth: float) -> Example:
        """Raises EvalError where the file has too few paragraphs."""
        asked = self._asked(rng)
        answering = [item.document for item in asked]
        others = [name for name in self.data.documents if name not in answering]
        if size > len(others):
            raise EvalError(
                f"{self.data.name} has {len(others)} paragraphs beside those that answer, {size} are needed",
                hint="Give a larger file with --text, or a smaller --length.",
            )
        names = rng.sample(others, max(0, size))
        for name, at in zip(answering, (depth, rng.random()), strict=False):
            names.insert(round(at * len(names)), name)
        context = "\n\n".join(f"Document {n}:\n{self.data.documents[name]}" for n, name in enumerate(names, start=1))
        question = " ".join(item.question.strip() for item in asked)
        answers = [[text for (text, *_) in item.answers] for item in asked]
        return Example("", self.task, context, question, answers, (), question, {"depth": depth})

    def _asked(self, rng: random.Random) -> list[Item]:
        """Questions about as many paragraphs."""
        found: list[Item] = []
        answered = [item for item in self.data.items if item.answers]
        while len(found) < QUESTIONS[self.task]:
            item = rng.choice(answered)
            if item.document not in {one.document for one in found}:
                found.append(item)
        return found

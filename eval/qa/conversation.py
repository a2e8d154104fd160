"""`folio eval conversation`: how well the second turn of a conversation finds its passage, by what is searched for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.qa.corpus import Corpus
from eval.qa.dataset import load
from eval.qa.judging import as_question
from eval.qa.ranking import DEPTH, figures, searched
from service.answering.conversation import standalone
from service.answering.question import Question

Way = Callable[[Question], str]
"""From a question in its conversation to what is searched for."""


def bare(question: Question) -> str:
    """The follow-up as it stands."""
    return question.text


def both_questions(question: Question) -> str:
    """The question before it and the follow-up, whatever they say."""
    return " ".join([turn.content for turn in question.history if turn.role == "user"][-1:] + [question.text])


WAYS: Mapping[str, Way] = {"follow-up alone": bare, "both questions": both_questions, "rule": standalone}


def measure(files: Sequence[Path], home: Path, embedder: str, ways: Mapping[str, Way] = WAYS) -> dict[str, Any]:
    """hit@1, hit@5 and MRR@10 of each file's gold sentences by each way, and what was searched for.

    Args:
        home: folder of the library, made where absent.
    """
    measured: dict[str, Any] = {}
    for file in files:
        dataset = load(file)
        questions = [as_question(item) for item in dataset.items]
        rows = {}
        with Corpus(dataset, home, embedder) as corpus:
            for name, way in ways.items():
                queries = [way(question) for question in questions]
                found = searched(corpus, queries, DEPTH, mode="hybrid")
                rows[name] = {
                    **figures(corpus, dataset.items, found),
                    "queries": {item.id: query for item, query in zip(dataset.items, queries, strict=True)},
                }
        measured[dataset.name] = rows
    return measured

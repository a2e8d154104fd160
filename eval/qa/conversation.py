"""`folio eval conversation`: how well the second turn of a conversation finds its passage, by what is searched for."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.errors import EvalError
from eval.qa.corpus import Corpus
from eval.qa.dataset import Dataset, load
from eval.qa.judging import as_question
from eval.qa.ranking import DEPTH, figures, searched
from service.answering.conversation import standalone
from service.answering.question import Question
from service.settings import load_settings

QUESTIONS = Path(__file__).parent / "questions"
DATA = tuple(
    QUESTIONS / f"{kind}.{part}.json" for kind in ("follow_ups", "topic_changes") for part in ("dev", "heldout")
)
"""Second turns that lean on the first, and such that change the topic; nothing is tuned on those held out."""


def bare(question: Question) -> str:
    """The follow-up as it stands."""
    return question.text


def both_questions(question: Question) -> str:
    """The question before it and the follow-up, whatever they say."""
    asked = [turn.content for turn in question.history if turn.role == "user"]
    return " ".join([*asked[-1:], question.text])


WAYS = {"follow-up alone": bare, "both questions": both_questions, "rule": standalone}


def measure(
    files: Sequence[Path], home: Path, embedder: str | Path, models: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """Figures of every file by every way, with what was searched for.

    Args:
        home: folder of the library, made where absent.
        models: those that put the follow-up into a question of its own.

    Raises:
        EvalError: a file cannot be used, or has a question without a turn before it.
    """
    datasets = [load(file) for file in files]
    for dataset in datasets:
        alone = next((item.id for item in dataset.items if not item.history), None)
        if alone is not None:
            raise EvalError(f"{alone} of {dataset.name} has no turn before it", param="data")
    queries = {way: [[make(as_question(item)) for item in d.items] for d in datasets] for way, make in WAYS.items()}
    seconds: dict[str, float] = {}
    for model in models:
        queries[f"rewritten by {model}"], seconds[f"rewritten by {model}"] = _rewritten(model, datasets)
    rows = []
    for at, dataset in enumerate(datasets):
        with Corpus(dataset, home, embedder) as corpus:
            for way, asked in queries.items():
                found = searched(corpus, asked[at], DEPTH, mode="hybrid")
                said = {item.id: query for item, query in zip(dataset.items, asked[at], strict=True)}
                row = {"data": dataset.name, "way": way, **figures(corpus, dataset.items, found), "queries": said}
                rows.append(row | ({"seconds_a_question": seconds[way]} if way in seconds else {}))
    return rows


def lines(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line a row, for people."""
    return [
        f"{row['data']:22} {row['way']:28} hit@1 {row['hit@1']['score']:5.1f} ± {row['hit@1']['stderr']:4.1f}   "
        f"hit@5 {row['hit@5']['score']:5.1f} ± {row['hit@5']['stderr']:4.1f}   of {row['n']}"
        for row in rows
    ]


def _rewritten(model: str, datasets: Sequence[Dataset]) -> tuple[list[list[str]], float]:
    """The queries of a model, the follow-up itself where it gives none, and the seconds that one takes by itself."""
    from service.answering.prompting import ChatLayout
    from service.answering.rewriting import rewriting_ids, rewriting_params, rewritten
    from service.models import layout_for, load_engine

    engine = load_engine(load_settings(model=model))
    layout = layout_for(model, engine.tokenizer)
    if not isinstance(layout, ChatLayout):
        raise EvalError(f"{model} is no chat model: it rewrites nothing", param="model")
    queries: list[list[str]] = []
    began = time.monotonic()
    with engine:
        for dataset in datasets:
            asked = [as_question(item) for item in dataset.items]
            made = [engine.generate([rewriting_ids(layout, one)], rewriting_params())[0].text for one in asked]
            queries.append([rewritten(reply) or one.text for reply, one in zip(made, asked, strict=True)])
    return queries, (time.monotonic() - began) / sum(map(len, queries))

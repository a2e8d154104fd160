"""One run: the library is built, search is measured over all questions, the model answers some; rows as they come.

DIR/library_DATA_KEY/               the documents with their index, kept while neither they nor the code change
DIR/rows_DATA_MODEL_MODE.jsonl      answers as they came (`eval.qa.replies.Reply`)
DIR/scored_DATA_MODEL_MODE.jsonl    each held to its question
DIR/results.json                    figures of every run in the folder
DIR/report.md, report.html          the same for people, with pictures
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from eval.errors import EvalError
from eval.figures import command_line, git_sha, machine, save_result, write_atomically
from eval.harness.jsonl import JsonlAppender
from eval.harness.store import read_rows
from eval.qa import ranking
from eval.qa.corpus import Corpus, library_key
from eval.qa.dataset import Dataset, Item, load
from eval.qa.figures import scored, summarise
from eval.qa.options import CONTROL, QaOptions
from eval.qa.replies import Answering, Mode, Reply
from retrieval.library import Library
from service.engine.loading.checkpoint import read_config
from service.libraries import embedder_of
from service.models import check_request
from service.settings import Settings, load_settings

EVERY_S = 10.0


def run(options: QaOptions) -> dict[str, Any]:
    """Measure, write everything into the folder, and return the figures of this run.

    Raises:
        EvalError: the data cannot be used, or the folder holds another run's rows. InvalidRequest, ModelError: there
            is no such drafter or model. All of it before a model is loaded or a document read.
    """
    dataset = load(options.data, options.language).half(options.half)
    settings = load_settings(model=None if options.model == CONTROL else options.model)
    cells = [_Cell(options, dataset, mode) for mode in options.modes if options.answers]
    if cells and options.model != CONTROL:
        check_request(settings, drafter=options.drafter)
        read_config(settings.model)
    for cell in cells:
        cell.claim()
    began = time.monotonic()
    embedder = embedder_of(settings)
    home = options.output / f"library_{dataset.name}_{library_key(dataset, embedder)}"
    with Corpus(dataset, home, embedder) as corpus:
        _say(f"{len(corpus.ids)} documents in the library, {time.monotonic() - began:.0f} s")
        searches = _searches(corpus, dataset, options) if options.retrieval else []
        found = []
        if cells:
            with _answering(options, settings, corpus.library) as answering:
                found = [cell.run(answering, corpus) for cell in cells]
    figures = {"retrieval": searches, "answers": found}
    _save(options, figures)
    return figures


class _Cell:
    """One model in one mode over the questions drawn."""

    def __init__(self, options: QaOptions, dataset: Dataset, mode: Mode) -> None:
        self._dataset = dataset.sample(options.limit, options.seed)
        self._mode = mode
        self._options = options
        self._stem = f"{dataset.name}_{options.label}_{mode}"
        self._rows = options.output / f"rows_{self._stem}.jsonl"
        self._arguments = {
            "data": dataset.name,
            "model": options.label,
            "mode": mode,
            "limit": options.limit,
            "half": options.half,
            "seed": options.seed,
            "drafter": options.drafter,
            "max_tokens": options.max_tokens,
        }

    def claim(self) -> None:
        """Make the file of rows this run's, or go on with an earlier one's where that is asked for.

        Raises:
            EvalError: it holds rows that nobody asked to go on with, or that were made with other arguments.
        """
        path = self._rows.with_suffix(".arguments.json")
        if self._rows.exists():
            before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
            if not self._options.resume:
                raise EvalError(
                    f"{self._rows} holds an earlier run's answers",
                    hint="Give --resume to go on with it, or another --output.",
                    param="output",
                )
            if before != self._arguments:
                raise EvalError(
                    f"{self._rows} was made with other arguments: {before}",
                    hint="Give the same ones to resume, or another --output.",
                    param="output",
                )
        write_atomically(path, json.dumps(self._arguments) + "\n")

    def run(self, answering: Answering, corpus: Corpus) -> dict[str, Any]:
        """Answer what has no row yet, and the figures of all."""
        with JsonlAppender(self._rows) as file:  # cuts off the half of a row that a kill left
            done = {row["id"] for row in read_rows(self._rows)}
            left = [item for item in self._dataset.items if item.id not in done]
            asyncio.run(self._answer(left, answering, corpus, file))
        replies = {row["id"]: Reply.of(row) for row in read_rows(self._rows)}
        pairs = [(item, replies[item.id]) for item in self._dataset.items]
        rows = [scored(reply, item, corpus) for item, reply in pairs]
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        write_atomically(self._options.output / f"scored_{self._stem}.jsonl", lines)
        return {**self._arguments, **answering.describe()} | summarise(rows, [reply for _, reply in pairs])

    async def _answer(self, items: Sequence[Item], answering: Answering, corpus: Corpus, file: JsonlAppender) -> None:
        shown = began = time.monotonic()
        count = 0
        async for reply in answering.answers(items, self._mode, corpus):
            file.append(reply.as_json())
            count += 1
            now = time.monotonic()
            if now - shown > EVERY_S:
                left = (now - began) / count * (len(items) - count)
                _say(f"{self._stem}: {count} of {len(items)}, {left:.0f} s left")
                shown = now


@contextmanager
def _answering(options: QaOptions, settings: Settings, library: Library) -> Iterator[Answering]:
    """What answers, ready."""
    if options.model == CONTROL:
        from eval.qa.control import Control

        yield Control()
        return
    from eval.qa.service import Service
    from service.answering.question import Sampling
    from service.models import load_engine

    sampling = Sampling(seed=options.seed, drafter=options.drafter, max_tokens=options.max_tokens)
    with ExitStack() as opened:
        engine = load_engine(settings)
        engine.start()
        opened.callback(engine.stop)
        yield Service(settings, engine, sampling, options.clients, library)


def _searches(corpus: Corpus, dataset: Dataset, options: QaOptions) -> list[dict[str, Any]]:
    """Figures of every way to search, over all questions of the half."""
    rows = []
    for method, found in ranking.rankings(corpus, dataset.items, options.rerank):
        row: dict[str, Any] = {"data": dataset.name, "half": options.half, "method": method}
        row |= ranking.figures(corpus, dataset.items, found)
        _say(f"{method}: hit@1 {row['hit@1']['score']:.1f} of {row['n']}")
        rows.append(row)
    return rows


def _save(options: QaOptions, figures: dict[str, Any]) -> None:
    """results.json with the runs that were in the folder before, the report, and the file that was asked for."""
    from eval.qa.report import report

    path = options.output / "results.json"
    before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"retrieval": [], "answers": []}
    whole = {
        name: list(({_key(row): row for row in before[name]} | {_key(row): row for row in figures[name]}).values())
        for name in ("retrieval", "answers")
    }
    facts = {"command": command_line(), "git": git_sha(), "machine": machine()}
    write_atomically(path, json.dumps({**facts, **whole}, indent=1, ensure_ascii=False) + "\n")
    report(options.output)
    if options.json is not None:
        told = {"seed": options.seed, "limit": options.limit}
        save_result(options.json.stem, {**told, **figures}, command_line(), options.json)


def _key(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row.get(name) for name in ("data", "half", "method", "model", "mode"))


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)

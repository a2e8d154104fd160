"""A table of documents and questions beside the same questions asked one by one: seconds, and whether cells are equal.

Documents are made of the paragraphs of a file of SQuAD's format, joined until each has so many tokens. Alone, every
question reads its document anew; in turn, question after question is asked of all documents, with the prefix cache of
the service; the table is filled as the service fills it. Each begins with an engine of its own, with nothing cached.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from typer import Option

from eval.bench.base import Figures, Model, Row, Squad, ThreadedOptions, Threads, bench
from eval.errors import EvalError
from eval.qa.dataset import load
from retrieval.types import DEFAULT_OWNER, Document, Upload
from service.answering.answer import collect
from service.answering.question import Question, Sampling
from service.runtime import Runtime
from service.settings import Settings, load_settings
from service.tables.columns import Column
from service.tables.filling import TableFiller, cell_of
from service.tables.store import TableSpec

QUESTIONS = (
    "What is this about?",
    "Which year is named first?",
    "Which person is named first?",
    "Which place is named first?",
    "What is counted, and how many are there?",
)

Cells = dict[tuple[str, int], Any]
"""By document and column."""


@dataclass(frozen=True, kw_only=True)
class Options(ThreadedOptions):
    """A table of documents and questions, beside the same questions asked one by one."""

    data: Squad
    model: Model = "smollm2"
    threads: Threads = 2
    documents: Annotated[int, Option(min=1, help="Rows.")] = 20
    questions: Annotated[int, Option(min=1, max=len(QUESTIONS), help="Columns.")] = len(QUESTIONS)
    characters: Annotated[int, Option(min=100, help="Least of a document.")] = 8000
    answer_tokens: Annotated[int, Option(min=1, help="Longest answer.")] = 32


def run(options: Options) -> Figures:
    """A row for each way, with its seconds and how many times sooner the table is."""
    texts = _texts(options)
    ways: dict[str, tuple[bool, Callable[[Runtime, list[Document]], Awaitable[Cells]]]] = {
        "alone": (False, lambda runtime, documents: _one_by_one(runtime, documents, options)),
        "in turn, prefix cache": (True, lambda runtime, documents: _one_by_one(runtime, documents, options)),
        "table": (True, lambda runtime, documents: _table(runtime, documents, options)),
    }
    rows, answers = [], []
    for name, (cache, fill) in ways.items():
        row, cells = asyncio.run(_measured(options, texts, cache, fill))
        rows.append({"way": name, **row})
        answers.append(cells)
    table = rows[-1]
    for row, cells in zip(rows, answers, strict=True):
        row["table_is_faster"] = row["seconds"] / table["seconds"]
        row["cells_as_in_table"] = sum(cells[place] == answers[-1][place] for place in cells) / len(cells)
    told = options.told("model", "documents", "questions", "characters", "answer_tokens")
    return {**told, "data": options.data.name, "rows": rows}


def _texts(options: Options) -> list[str]:
    """Raises EvalError: the file has too few paragraphs."""
    made = [""]
    for paragraph in load(options.data).documents.values():
        if len(made[-1]) >= options.characters:
            made.append("")
        made[-1] = f"{made[-1]}\n\n{paragraph}".strip()
    whole = [text for text in made if len(text) >= options.characters][: options.documents]
    if len(whole) < options.documents:
        raise EvalError(f"{options.data} makes only {len(whole)} documents", hint="Give fewer --characters.")
    return whole


async def _measured(
    options: Options,
    texts: Sequence[str],
    cache: bool,
    fill: Callable[[Runtime, list[Document]], Awaitable[Cells]],
) -> tuple[Row, Cells]:
    """Seconds of a way and tokens that were not found in the prefix cache, in a service of its own."""
    with tempfile.TemporaryDirectory() as home:
        settings: Settings = load_settings(
            home=Path(home), model=options.model, threads=options.threads, prefix_cache=cache, drafter="none",
            answer_tokens=options.answer_tokens,
        )  # fmt: skip
        runtime = Runtime(settings)
        await runtime.start()
        try:
            await runtime.ended.wait()
            if runtime.failure is not None:
                raise runtime.failure
            uploads = [Upload(f"{number:02}.txt", text.encode()) for number, text in enumerate(texts)]
            await asyncio.to_thread(runtime.library.ingest, uploads)
            documents = sorted(runtime.library.documents(), key=lambda one: one.name)
            before = runtime.engine.engine.stats()
            began = time.perf_counter()
            cells = await fill(runtime, documents)
            seconds = time.perf_counter() - began
            after = runtime.engine.engine.stats()
        finally:
            await runtime.stop()
    gained = {name: after[name] - before[name] for name in ("prompt_tokens", "prefix_cache_hits", "output_tokens")}
    read = gained["prompt_tokens"] - gained["prefix_cache_hits"]
    return {"seconds": seconds, "tokens_read": read, "tokens_written": gained["output_tokens"]}, cells


def _columns(options: Options) -> tuple[Column, ...]:
    return tuple(Column(question=question) for question in QUESTIONS[: options.questions])


async def _one_by_one(runtime: Runtime, documents: Sequence[Document], options: Options) -> Cells:
    answerer = runtime.answerer
    writes = not answerer.layout.quotes
    params = Sampling().params(answerer.answer_tokens, runtime.engine.sampling_defaults)
    cells: Cells = {}
    for number, column in enumerate(_columns(options)):
        for document in documents:
            asked = Question(question=column.asked if writes else column.question, documents=(document.id,))
            answer = await collect(answerer.answer(asked.searched_as(column.question), params, DEFAULT_OWNER))
            cells[document.name, number] = cell_of(column, answer, writes)["answer"]
    return cells


async def _table(runtime: Runtime, documents: Sequence[Document], options: Options) -> Cells:
    store = runtime.tables
    filler = TableFiller(store, runtime.answerer)
    made = store.create(DEFAULT_OWNER, TableSpec(columns=_columns(options)), documents)
    head = store.claim(filler.holder, made.id)
    assert head is not None
    await filler.fill(head)
    return {
        (row.name, number): cell["answer"]
        for row in store.rows(DEFAULT_OWNER, made.id)
        for number, cell in enumerate(row.cells or [])
    }


command = bench(Options, run, "bench_table")

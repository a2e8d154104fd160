"""`folio eval run`: every engine over every task and length, one example at a time, resumable.

A failed example is a row with an empty prediction, its error, and a score of 0; it stays in the denominator.
"""

from __future__ import annotations

import hashlib
import time
from array import array
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import structlog

from eval.errors import EvalError
from eval.figures import git_sha, machine
from eval.harness.engines import AnswerEngine, Reply, folder_name
from eval.harness.plan import Plan
from eval.harness.progress import TextProgress
from eval.harness.prompting import ModelInput, Prompter
from eval.harness.store import FORMAT, Cell, Rows, claim, read_rows, save_summary
from eval.harness.summary import summarise
from eval.scoring import SCORERS, score_one
from eval.tasks.example import Example
from eval.tasks.sources import Source
from service.errors import FolioError

log = structlog.get_logger(__name__)

SHOWN = "official_v1"
"""The scorer of the running score."""


@dataclass(frozen=True)
class Budget:
    """How many tokens a prompt and its answer may have.

    Attributes:
        window: what the engine holds.
        length: what was asked for, or None.
        wanted: the task's new tokens.
    """

    window: int
    length: int | None
    wanted: int

    @property
    def new_tokens(self) -> int:
        """The task's budget, held to half of the room where that is smaller (math_calc wants 30,000)."""
        return max(1, min(self.wanted, (self.length or self.window) // 2))

    @property
    def prompt_tokens(self) -> int:
        """Longest prompt; longer ones lose their middle."""
        return (self.length or self.window) - self.new_tokens


def run(plan: Plan, progress: TextProgress) -> dict[str, Any]:
    """Run the plan, or what is left of it; returns the summary that results.json then holds.

    Raises:
        EvalError: the folder belongs to another run, the data cannot be read, or the disk is full. Rows
            written before are kept, and the same plan goes on after them.
    """
    folder = plan.options.folder
    claim(folder, plan.options.arguments())
    cells: list[dict[str, Any]] = []
    for source in plan.sources:
        for length in plan.options.length or (None,):
            found = [
                _run_cell(plan, *asked, source, length, folder, progress)
                for asked in plan.engines
                if plan.holds(asked[0], length)
            ]
            for group in [found] if plan.options.together else [[cell] for cell in found]:
                cells += _in_turn(group)
                save_summary(folder, _summary(plan, cells))
    return _summary(plan, cells)


def _in_turn(cells: Sequence[Generator[None, None, dict[str, Any]]]) -> list[dict[str, Any]]:
    """Advance the cells by one row each until all have ended; returns their figures in the same order."""
    figures: dict[int, dict[str, Any]] = {}
    while len(figures) < len(cells):
        for index, cell in enumerate(cells):
            if index not in figures:
                try:
                    next(cell)
                except StopIteration as ended:
                    figures[index] = ended.value
    return [figures[index] for index in range(len(cells))]


def _run_cell(
    plan: Plan,
    engine: AnswerEngine,
    prompter: Prompter,
    source: Source,
    length: int | None,
    folder: Path,
    progress: TextProgress,
) -> Generator[None, None, dict[str, Any]]:
    """Yields after every row; returns the cell's figures."""
    cell = Cell(engine.name, source.name, length)
    budget = Budget(engine.window, length, plan.options.new_tokens or source.new_tokens)
    with Rows(folder, cell) as rows:
        limit = plan.options.limit_at(length)
        shown = progress.begin(cell, limit, [sample["scores"][SHOWN] for sample in rows.samples()])
        began = time.perf_counter()
        for example in islice(_left(source, prompter, length, plan, rows.done), _less(limit, rows.done)):
            prompt, reply, error = _attempt(engine, prompter, example, budget)
            sample = _sample(example, prompt, reply, error, model_name=prompter.name)
            rows.append(_speed(sample, reply, time.perf_counter() - began), sample, _prediction(example, sample))
            shown.row(sample["scores"][SHOWN])
            yield
            began = time.perf_counter()
        shown.end()
    figures = summarise(read_rows(rows.paths["samples"]), read_rows(rows.paths["speed"]))
    return {
        "engine": cell.engine,
        "task": cell.task,
        "task_version": source.version,
        "length": cell.length,
        "prompt": prompter.name,
        "new_tokens": budget.new_tokens,
        **figures,
    }


def _left(source: Source, prompter: Prompter, length: int | None, plan: Plan, done: Sequence[Any]) -> Iterator[Example]:
    """The examples after those already answered, whose ids are checked to be the same as then."""
    for index, example in enumerate(source.examples(prompter, length, plan.problems)):
        if index >= len(done):
            yield example
        elif example.id != done[index]:
            raise EvalError(
                f"row {index + 1} of the earlier run is example {done[index]!r}; the data now has {example.id!r}",
                hint="Give another --output.",
            )


def _less(limit: int | None, done: Sequence[Any]) -> int | None:
    return None if limit is None else max(0, limit - len(done))


def _attempt(
    engine: AnswerEngine, prompter: Prompter, example: Example, budget: Budget
) -> tuple[ModelInput | None, Reply | None, str | None]:
    """Prompt, reply and error of one example; whatever fails here fails this example only."""
    prompt = None
    try:
        prompt = prompter.build(example, budget.prompt_tokens)
        return prompt, engine.answer(prompt, budget.new_tokens), None
    except FolioError as error:
        log.warning("example failed", task=example.task, id=example.id, error=error.detail)
        return prompt, None, error.detail
    except (RuntimeError, MemoryError, ValueError, IndexError, KeyError, TypeError) as error:
        log.exception("example failed", task=example.task, id=example.id)
        return prompt, None, f"{type(error).__name__}: {error}"


def _sample(
    example: Example, prompt: ModelInput | None, reply: Reply | None, error: str | None, *, model_name: str
) -> dict[str, Any]:
    """What a second run of the same example must give again."""
    prediction = prompt.read(reply.token_ids, reply.text) if prompt and reply else ""
    scores = {}
    for scorer in SCORERS:
        try:
            scores[scorer] = score_one(example.task, scorer, prediction, example.answer, model_name=model_name)
        except EvalError as wrong:
            scores[scorer] = 0.0
            error = error or wrong.detail
    return {
        "id": example.id,
        "prediction": prediction,
        "text": reply.text if reply else "",
        "token_ids": list(reply.token_ids) if reply else [],
        "finish_reason": reply.finish_reason if reply else "error",
        "ground_truth": example.answer,
        "scores": scores,
        "groups": example.groups,
        "prompt_tokens": reply.prompt_tokens if reply else len(prompt.ids) if prompt else None,
        "prompt_sha256": _digest(prompt.ids) if prompt else None,
        "cut_tokens": prompt.cut_tokens if prompt else 0,
        "error": error,
    }


def _prediction(example: Example, sample: dict[str, Any]) -> dict[str, Any]:
    """The official predictions file's row."""
    return {"id": example.id, "prediction": sample["prediction"], "ground_truth": example.answer}


def _speed(sample: dict[str, Any], reply: Reply | None, elapsed: float) -> dict[str, Any]:
    """What a second run would measure differently. `harness_s`: everything but the engine, the row's share."""
    return {
        "id": sample["id"],
        "ttft_s": reply.ttft_s if reply else None,
        "total_s": reply.total_s if reply else None,
        "decode_tokens_per_s": reply.decode_tokens_per_s if reply else None,
        "prompt_tokens": sample["prompt_tokens"],
        "output_tokens": len(sample["token_ids"]) or (reply.stats.get("output_tokens") if reply else None),
        "harness_s": elapsed - reply.total_s if reply else elapsed,
        "stats": reply.stats if reply else {},
    }


def _summary(plan: Plan, cells: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "command": plan.command,
        "git": git_sha(),
        "machine": machine(),
        "arguments": plan.options.arguments(),
        "limit": list(plan.options.limit),
        "engines": {e.name: {**e.describe(), "folder": folder_name(e.name)} for e, _ in plan.engines},
        "problems": [problem.as_json() for problem in plan.problems],
        "left_out": dict(plan.left_out),
        "cells": cells,
    }


def _digest(ids: Sequence[int]) -> str:
    """Of the prompt's ids, to tell in a comparison whether two engines were asked the same."""
    return hashlib.sha256(array("q", ids).tobytes()).hexdigest()[:16]

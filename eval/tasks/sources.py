"""Tasks by the names that the command line knows: where their examples come from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Protocol

from eval.errors import EvalError
from eval.harness.jsonl import Problem
from eval.harness.prompting import Prompter
from eval.scoring import references
from eval.tasks import babilong_style, generate, helmet, infinitebench, longbench, paragraphs, shared_context
from eval.tasks.example import Example
from eval.tasks.paragraphs import ParagraphQuestions
from eval.tasks.quoting import QuoteMaker, read_folder
from eval.tasks.shared_context import SharedSource

GENERATED_VERSION = "1"
"""Raised when the same arguments would generate other examples."""

SUITES = {
    "infinitebench": list(infinitebench.MAX_NEW_TOKENS),
    "ruler": [name.removesuffix("-style") for name in (*references.RULER_STYLE, *paragraphs.QUESTIONS)],
    "babilong": [name.removesuffix("-style") for name in babilong_style.MAKERS],
    "scbench": list(shared_context.TASKS),
}


class Source(Protocol):
    """Where a task's examples come from.

    Attributes:
        shares: whether neighbouring examples share their context, and an engine is to keep it.
    """

    shares: bool

    @property
    def name(self) -> str: ...

    @property
    def new_tokens(self) -> int: ...

    @property
    def version(self) -> str: ...

    def examples(self, prompter: Prompter, length: int | None, problems: list[Problem]) -> Iterator[Example]:
        """The examples, always in the same order."""
        ...


@dataclass
class OfficialSource:
    """One InfiniteBench task from a folder or the hub, streamed."""

    name: str
    data: str
    new_tokens: int
    version: str = infinitebench.VERSION
    shares = False

    def examples(self, prompter: Prompter, length: int | None, problems: list[Problem]) -> Iterator[Example]:
        """The official rows in their order."""
        return infinitebench.load(self.name, self.data, problems)


@dataclass
class FileSource:
    """A task from the one file that its benchmark keeps it in."""

    name: str
    path: Path
    version: str
    new_tokens: int
    load: Callable[[Path, list[Problem]], Iterator[Example]]
    shares = False

    def examples(self, prompter: Prompter, length: int | None, problems: list[Problem]) -> Iterator[Example]:
        """The rows in their order."""
        return self.load(self.path, problems)


@dataclass
class GeneratedSource:
    """One generated task; the examples made for one engine serve the others that are asked alike."""

    name: str
    maker: generate.Maker
    count: int
    seed: int
    new_tokens: int
    version: str = GENERATED_VERSION
    shares = False
    _made: dict[tuple[str, int], list[Example]] = field(default_factory=dict)
    _making: dict[tuple[str, int], Iterator[Example]] = field(default_factory=dict)

    def examples(self, prompter: Prompter, length: int | None, problems: list[Problem]) -> Iterator[Example]:
        """`count` examples at `length`, made as they are asked for.

        Raises:
            EvalError: no length, or one that the task cannot be made at.
        """
        if length is None:
            raise EvalError(f"the generated task {self.name} needs a length", hint="Give --length.", param="length")
        key = (prompter.name, length)
        if key not in self._made:
            tokens = min(self.new_tokens, length // 2)
            self._made[key] = []
            self._making[key] = generate.generate(
                self.name, self.maker, prompter, length=length, new_tokens=tokens, count=self.count, seed=self.seed
            )
        made = self._made[key]
        for index in range(self.count):
            if index == len(made):
                made.extend(islice(self._making[key], 1))
            yield made[index]


def sources(
    names: Sequence[str],
    *,
    data: str | None,
    text: Path | None,
    count: int | None,
    seed: int,
    new_tokens: int | None = None,
    least_new_tokens: int = 0,
) -> list[Source]:
    """The sources of named tasks.

    Args:
        names: an InfiniteBench task is the original with `data`, else made in its style; a name that ends in "-style"
            is always generated.
        data: a folder of official files (InfiniteBench's, SCBench's), ``hub``, or the file of LongBench or HELMET.
        text: the folder that `quote` asks about; the file of SQuAD's format that `qa_1` and `qa_2` do.
        count: examples of generated tasks (100 by default).
        new_tokens: budget of new tokens in place of the tasks' own.
        least_new_tokens: what the tasks' own budgets are raised to.

    Raises:
        EvalError: an unknown name, or one that lacks its data.
    """
    found = [_source(task, data, text, count or 100, seed) for task in dict.fromkeys(names)]
    for source in found:
        source.new_tokens = new_tokens or max(source.new_tokens, least_new_tokens)
    return list(found)


def tasks_of_suites(names: Sequence[str], *, data: str | None, text: Path | None) -> tuple[list[str], dict[str, str]]:
    """The tasks of named suites that can be asked or made, and those that cannot, each with what it lacks.

    Raises:
        EvalError: an unknown suite, or one of which no task can be made.
    """
    wanted: dict[str, None] = {}
    for name in names:
        if name not in SUITES:
            raise EvalError(f"unknown suite {name!r}", hint=f"Choose from {', '.join(SUITES)}.", param="suite")
        wanted |= dict.fromkeys(SUITES[name])
    lacking = {task: needed for task in wanted if (needed := _lacks(task, data, text))}
    return [task for task in wanted if task not in lacking], lacking


def _lacks(task: str, data: str | None, text: Path | None) -> str | None:
    """What a task of a suite needs and has not been given."""
    if f"{task}-style" in paragraphs.QUESTIONS and text is None:
        return "needs a file of SQuAD's format: give it with --text"
    if task in infinitebench.MAX_NEW_TOKENS and f"{task}-style" not in generate.MAKERS and data is None:
        return "needs its official file: give the folder with --data"
    return None


def _source(
    task: str, data: str | None, text: Path | None, count: int, seed: int
) -> OfficialSource | FileSource | GeneratedSource | SharedSource:
    if task in infinitebench.MAX_NEW_TOKENS and data is not None:
        return OfficialSource(task, data, infinitebench.MAX_NEW_TOKENS[task])
    if task in longbench.LOADERS:
        return FileSource(task, _file(task, data), "1", longbench.NEW_TOKENS[task], longbench.LOADERS[task])
    if task in helmet.NEW_TOKENS:
        return FileSource(task, _file(task, data), "1", helmet.NEW_TOKENS[task], partial(helmet.load, task))
    if task.removesuffix("-style") in shared_context.TASKS:
        base = task.removesuffix("-style")
        tokens = shared_context.NEW_TOKENS[base.removesuffix(shared_context.REQUESTS)]
        folder = Path(data) if data is not None and base == task else None
        return SharedSource(base, count, seed, tokens, folder)
    name = task if task == "quote" else task.removesuffix("-style") + "-style"
    tokens = generate.max_new_tokens(name)
    if task == "quote":
        if text is None:
            raise EvalError("quote needs a folder of text", hint="Give it with --text.", param="text")
        return GeneratedSource(name, QuoteMaker(read_folder(text)), count, seed, tokens)
    if name in paragraphs.QUESTIONS:
        if text is None:
            raise EvalError(f"{task} needs a file of SQuAD's format", hint="Give it with --text.", param="text")
        return GeneratedSource(name, ParagraphQuestions.of_file(name, text), count, seed, tokens)
    if name in generate.MAKERS:
        return GeneratedSource(name, generate.MAKERS[name], count, seed, tokens)
    if task in infinitebench.MAX_NEW_TOKENS:
        raise EvalError(f"{task} cannot be generated", hint="Give its official file with --data.", param="data")
    made = [*generate.MAKERS, *paragraphs.QUESTIONS, *shared_context.TASKS, "quote"]
    known = ", ".join([*infinitebench.MAX_NEW_TOKENS, *made, *longbench.LOADERS, *helmet.NEW_TOKENS])
    hint = f"It is a suite: give --suite {task}." if task in SUITES else f"Choose from {known}."
    raise EvalError(f"unknown task {task!r}", hint=hint, param="tasks")


def _file(task: str, data: str | None) -> Path:
    if data is None:
        raise EvalError(f"{task} needs its file", hint="Give the benchmark's own file with --data.", param="data")
    return Path(data)

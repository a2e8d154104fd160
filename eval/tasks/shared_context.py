"""Several questions over one context, as SCBench asks them (Li et al. 2024, arXiv 2412.10319).

A session is a context and its questions. They are asked in turn, each behind the questions before it and their right
answers, or each by itself behind the context (``_scdq``: the same context, different queries). Either way the prompts
of a session begin alike, so that an engine that keeps the KV of prefixes reads the context once, and a policy that
chooses or drops keys for one question has to answer the next from what it kept.

Sessions are made from a seed, never passed off as the originals: values of random keys in a JSON object; strings found
by their beginning and end; words labelled as hundreds of examples do it. Or they are read from SCBench's own files.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from eval.errors import EvalError
from eval.harness.jsonl import Problem, read_jsonl
from eval.harness.prompting import Prompter
from eval.tasks.example import Example
from eval.tasks.generate import largest_fitting, refit
from eval.tasks.infinitebench_style import kv_pairs
from eval.tasks.ruler_style import ADJECTIVES, NOUNS

TURNS = 5
"""questions of a session"""
REQUESTS = "_scdq"
"""what SCBench calls the other mode: same context, different query"""
NEW_TOKENS = {"scbench_kv": 80, "scbench_prefix_suffix": 80, "scbench_many_shot": 10}
LABELS = "ABCD"


@dataclass(frozen=True)
class Turn:
    """A question in the words of the benchmark, its answer, and the question for a layout."""

    input: str
    answer: str
    question: str = ""


@dataclass(frozen=True)
class Session:
    """A context, and what is asked about it."""

    context: str
    turns: tuple[Turn, ...]


Maker = Callable[[random.Random, int], Session]
"""Makes a session from a seeded generator and a size (units of filler)."""


def kv(rng: random.Random, size: int) -> Session:
    """Values of keys, all UUIDs."""
    pairs = kv_pairs(rng, max(TURNS, size))
    context = "JSON data:\n{" + ", ".join(f'"{k}": "{v}"' for k, v in pairs) + "}"
    return Session(context, tuple(_value_of(k, v) for k, v in rng.sample(pairs, TURNS)))


def _value_of(key: str, value: str) -> Turn:
    asked = f'Key: "{key}"\nThe value associated with the specified key is:'
    return Turn(asked, value, f'What is the value of the key "{key}"?')


def prefix_suffix(rng: random.Random, size: int) -> Session:
    """Strings of letters and digits, found by their first and last characters."""
    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    strings = ["".join(rng.choices(letters, k=rng.randint(30, 60))) for _ in range(max(TURNS, size))]
    turns = []
    for one in rng.sample(strings, TURNS):
        question = f"Which string begins with {one[:10]} and ends with {one[-10:]}?"
        turns.append(Turn(f"{question} The string is:", one, question))
    return Session("\n".join(strings), tuple(turns))


def many_shot(rng: random.Random, size: int) -> Session:
    """Things, two words each, whose second word decides the label; those that are asked about stand nowhere."""
    label = {noun: LABELS[i % len(LABELS)] for i, noun in enumerate(rng.sample(NOUNS, len(NOUNS)))}
    every = [(adjective, noun) for adjective in ADJECTIVES for noun in NOUNS]
    rng.shuffle(every)
    asked, others = every[:TURNS], every[TURNS:]
    shots = (others * (size // len(others) + 1))[: max(1, size)]
    seen = {noun for _, noun in shots}
    shots += [next(pair for pair in others if pair[1] == noun) for _, noun in asked if noun not in seen]
    rng.shuffle(shots)
    context = "\n\n".join(f"Thing: {adjective} {noun}\nLabel: ({label[noun]})" for adjective, noun in shots)
    turns = (
        Turn(f"Thing: {adjective} {noun}\nLabel:", f"({label[noun]})", f"Which label has the thing {adjective} {noun}?")
        for adjective, noun in asked
    )
    return Session(context, tuple(turns))


MAKERS: dict[str, Maker] = {
    "scbench_kv": kv,
    "scbench_prefix_suffix": prefix_suffix,
    "scbench_many_shot": many_shot,
}
TASKS = tuple(f"{task}{mode}" for mode in ("", REQUESTS) for task in MAKERS)


def of_session(task: str, session: Session, number: Any) -> Iterator[Example]:
    """The examples of a session, in the order in which they are asked; ids are NUMBER.TURN."""
    before = ""
    for at, turn in enumerate(session.turns):
        said = turn.input if REQUESTS in task else before + turn.input
        question = turn.question or turn.input
        if REQUESTS not in task:
            question = before + question
            before += f"{turn.input} {turn.answer}\n\n"
        yield Example(f"{number}.{at}", task, session.context, said, turn.answer, (), question, {"turn": at})


def load(task: str, folder: Path, problems: list[Problem]) -> Iterator[Example]:
    """The examples of one of SCBench's files, ``TASK.jsonl``: rows of a context and its ``multi_turns``.

    Args:
        problems: receives the broken lines and rows of another shape, which are skipped.

    Raises:
        EvalError: the file is missing, or holds no row of SCBench.
    """
    path = folder / f"{task.removesuffix(REQUESTS)}.jsonl"
    found = 0
    for position, (line, row) in enumerate(read_jsonl(path, problems)):
        try:
            context = row["context"] if "context" in row else row["input"]
            turns = tuple(Turn(str(turn["input"]), _answer(turn["answer"])) for turn in row["multi_turns"])
            if not isinstance(context, str) or not turns:
                raise TypeError("a context and turns")
        except (KeyError, TypeError) as error:
            problems.append(Problem(line, f"a row of SCBench lacks {error}, skipped"))
            continue
        found += 1
        yield from of_session(task, Session(context, turns), row.get("id", position))
    if not found:
        raise EvalError(f"{path} holds no row of SCBench", hint="Its rows have a context and multi_turns.")


def _answer(answer: Any) -> str:
    return str(answer[0] if isinstance(answer, list) else answer)


@dataclass
class SharedSource:
    """Sessions made at a length, or those of SCBench's files in a folder, as examples in their order."""

    task: str
    count: int
    seed: int
    new_tokens: int
    data: Path | None = None
    version: str = "1"
    shares = True

    @property
    def name(self) -> str:
        return self.task if self.data is not None else f"{self.task}-style"

    def examples(self, prompter: Prompter, length: int | None, problems: list[Problem]) -> Iterator[Example]:
        """The examples of all sessions.

        Raises:
            EvalError: no length for what is made, or one that not even the smallest session fits.
        """
        if self.data is not None:
            yield from load(self.task, self.data, problems)
            return
        if length is None:
            raise EvalError(f"the generated task {self.name} needs a length", hint="Give --length.", param="length")
        size = 0
        for number in range(-(-self.count // TURNS)):
            tokens = self._tokens(prompter, length, number)
            size = refit(tokens, length, size, self.name) if number else largest_fitting(tokens, length, self.name)
            yield from of_session(self.name, self._session(length, number, size), number)

    def _session(self, length: int, number: int, size: int) -> Session:
        seeded = random.Random(f"{self.task.removesuffix(REQUESTS)}:{length}:{self.seed}:{number}")
        return MAKERS[self.task.removesuffix(REQUESTS)](seeded, size)

    def _tokens(self, prompter: Prompter, length: int, number: int) -> Callable[[int], int]:
        """Of the longest prompt of a session of some size, with its answer."""
        new_tokens = min(self.new_tokens, length // 2)

        @cache
        def tokens(size: int) -> int:
            *_, last = of_session(self.name, self._session(length, number, size), number)
            return prompter.count(last) + new_tokens

        return tokens

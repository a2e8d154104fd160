"""What each attention policy costs a model in answers, by length: pass keys, numbers, key–value pairs; of the embedded
reader quotations too.

Contexts are consecutive sentences of a text the model was not trained on, with statements planted at even depths. A
context is read once a policy and serves all of its questions from the prefix cache. Answers are greedy; when one is
right says `questions`.
"""

from __future__ import annotations

import random
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import structlog
from typer import Option

from eval.bench.attention.questions import PLANTED, QUOTE, Asking, OfModel, OfReader
from eval.bench.base import Cells, Figures, Lengths, Model, Policies, Result, Row, Seed, ThreadedOptions, bench
from eval.bench.runner import ask, build
from eval.errors import EvalError
from eval.figures import named
from eval.options import Separated
from eval.reader.data import FRAMES, UNSEEN_FRAMES, Example, Maker, Question
from service.engine.async_engine import AsyncEngine
from service.engine.loading.checkpoint import load_model
from service.engine.params import SamplingParams
from service.reader.sentences import split

log = structlog.get_logger(__name__)

NAME = "sparse_accuracy"
READER = "embedded"
POLICIES = ("dense", "auto", "quest", "lserve", "trianglemix", "minference", "flexprefill", "xattention")
ROOM = 256  # tokens for question and answer


@dataclass(frozen=True, kw_only=True)
class Options(ThreadedOptions):
    """Count a model's right answers under each attention policy; the first policy is the reference."""

    text: Annotated[Path, Option(exists=True, dir_okay=False, help="A text the model was not trained on.")]
    model: Model = READER
    lengths: Lengths = (4096, 16384, 32768)
    policies: Policies = POLICIES
    tasks: Annotated[
        tuple[str, ...],
        Separated(),
        Option(help="Of passkey, number, kv and, for the reader, quote; separated by commas. Default: all."),
    ] = ()
    dtype: Annotated[str, Option(help="Precision of the model.")] = "auto"
    questions: Annotated[int, Option(min=1, help="Questions a context.")] = 16
    contexts: Annotated[int, Option(min=1, help="Contexts of each length and task.")] = 1
    seed: Seed = 7
    resume: Annotated[bool, Option("--resume", help="Ask only what the file of figures lacks.")] = False


def measure(options: Options) -> Figures:
    """The command: what the file lacks of the figures, kept as they come."""
    result = Result(NAME, options.output)
    return run(options, result.earlier() if options.resume else None, result.save)


def run(
    options: Options, earlier: Figures | None = None, keep: Callable[[Figures], object] = lambda figures: None
) -> Figures:
    """Rows of right and quoted answers by length, task and policy, and each policy's loss against the first.

    ``keep`` is given the figures so far after every policy of a context; ``earlier`` ones of the same questions are not
    asked for again.

    Raises:
        EvalError: a task that the model cannot be asked, a length that it does not hold, no tokenizer, or earlier
            figures of other questions.
    """
    kind = OfReader if options.model == READER else OfModel
    if unknown := set(options.tasks) - set(kind.tasks):
        raise EvalError(f"unknown task {min(unknown)!r}", hint=f"There are {', '.join(kind.tasks)}.", param="tasks")
    loaded = load_model(options.model, options.dtype)
    if loaded.tokenizer is None:
        raise EvalError(f"The model {options.model!r} has no tokenizer, so it cannot be asked anything.")
    if max(options.lengths) > loaded.max_len:
        raise EvalError(f"The model holds {loaded.max_len} tokens: ask for lengths up to that.", param="lengths")
    asking: Asking = kind(loaded.tokenizer)
    sentences = [s.words for s in split(options.text.read_text(encoding="utf-8"))]
    maker = Maker([sentences], asking.length, frames=(*FRAMES, *UNSEEN_FRAMES))
    asked = {
        "model": named(options.model),
        "questions_a_context": options.questions,
        "contexts": options.contexts,
        "seed": options.seed,
    }
    known = Cells(_known(earlier, asked))
    rows: list[Row] = []

    def figures() -> Figures:
        return {**asked, "rows": rows, "policies": summarise(rows)}

    for length in sorted(options.lengths):
        with build(loaded, 2.5 * length, prefix_cache=True, attention="auto") as engine:
            for task, number in product(options.tasks or asking.tasks, range(options.contexts)):
                rng = random.Random(f"{options.seed}:{task}:{length}:{number}")
                example = make_example(maker, task, length - ROOM, options.questions, rng)
                place = {"length": length, "task": task, "context": number}
                for policy in options.policies:
                    row = next(iter(known.at(**place, policy=policy)), None)
                    if row is None:
                        row = place | _answers(engine, asking, example, policy)
                        log.info("answered", **row)
                    rows.append(row)
                    keep(figures())
    return figures()


def _known(earlier: Figures | None, asked: dict[str, Any]) -> list[Row]:
    """Rows of earlier figures, which must be of the same questions."""
    if earlier is None:
        return []
    for name, value in asked.items():
        if earlier[name] != value:
            raise EvalError(f"the earlier run had {name}={earlier[name]}, not {value}", hint="Give another --output.")
    return list(earlier["rows"])


def summarise(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Policy → task → questions, share right and quoted, and points lost against the first policy of the rows."""
    base = rows[0]["policy"]
    table: dict[str, dict[str, Any]] = {}
    for policy in dict.fromkeys(r["policy"] for r in rows):
        for task in dict.fromkeys(r["task"] for r in rows):
            own = [r for r in rows if r["policy"] == policy and r["task"] == task]
            if not own:  # not yet
                continue
            asked = sum(r["questions"] for r in own)
            figures: dict[str, Any] = {"questions": asked, "density": sum(r["density"] for r in own) / len(own)}
            for score in ("right", "quoted"):
                figures[score] = sum(r[score] for r in own) / asked
                reference = table.get(base, {}).get(task, figures)[score]
                figures[f"{score}_points_lost"] = 100 * (reference - figures[score])
            table.setdefault(policy, {})[task] = figures
    return table


def make_example(maker: Maker, task: str, tokens: int, questions: int, rng: random.Random) -> Example:
    """One context of about ``tokens`` tokens with ``questions`` questions of a task."""
    if task == QUOTE:
        sentences = maker.context(rng, tokens)
        index = [maker.stems(s) for s in sentences]
        asked: list[Question] = []
        while len(asked) < questions:
            if made := maker._about(rng, sentences, index):
                asked.append(made)
        return Example(sentences, asked)
    statements = _statements(maker, task, questions * PLANTED[task], rng)
    sentences = maker.context(rng, tokens - sum(maker.length(statement) for statement, _ in statements))
    for i, (statement, _) in enumerate(statements):
        sentences.insert(int((i + 0.5) / len(statements) * len(sentences)), statement)
    asked = [Question(question, sentences.index(statement), task) for statement, question in statements]
    return Example(sentences, rng.sample(asked, questions))


def _statements(maker: Maker, task: str, count: int, rng: random.Random) -> list[tuple[str, str]]:
    """(statement, question for it)."""
    if task == "kv":
        pairs = [[str(uuid.UUID(int=rng.getrandbits(128))) for _ in range(2)] for _ in range(count)]
        return [(f'"{key}": "{value}"', f'What is the value of the key "{key}"?') for key, value in pairs]
    if count > len(maker.names):
        raise EvalError(
            f"the text has too few names for {count} questions: {len(maker.names)}",
            hint="Ask fewer, or give a longer text.",
            param="questions",
        )
    names = rng.sample(sorted(maker.names), count)
    if task == "passkey":
        told = (
            (f"The pass key of {n} is {rng.randrange(10**4, 10**5)}.", f"What is the pass key of {n}?") for n in names
        )
    else:
        told = (
            (
                f"The special magic number for {n} is: {rng.randrange(10**9, 10**10)}.",
                f"What is the special magic number for {n}?",
            )
            for n in names
        )
    return list(told)


def _answers(engine: AsyncEngine, asking: Asking, example: Example, policy: str) -> Row:
    """How many questions of a context the engine answers under a policy."""
    verdicts, densities, tokens, times = [], [], [], []
    for question in example.questions:
        ids, most = asking.prompt(example, question)
        reply = ask(engine, ids, SamplingParams(max_tokens=most, attention=policy))
        verdicts.append(asking.judged(example, question, reply))
        densities.append(reply.stats.get("prefill_density", 1.0))
        tokens.append(len(ids))
        times.append(reply.times[0])
    return {
        "policy": policy,
        "tokens": tokens[0],
        "questions": len(example.questions),
        "right": sum(right for right, _ in verdicts),
        "quoted": sum(quoted for _, quoted in verdicts),
        "density": densities[0],  # of the question that read the context
        "first_token_s": times[0],  # of the same
    }


command = bench(Options, measure, NAME)

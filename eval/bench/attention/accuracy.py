"""What each attention policy costs the reader in answers: pass keys, numbers, quotations and key–value pairs by length.

Contexts are consecutive sentences of a text the reader was not trained on, with statements planted at even depths. A
context is read once a policy and serves all of its questions from the prefix cache. Answers are greedy; a question is
*right* if the reference is that of the sentence asked for (or of one with the same words), *quoted* if the whole
sentence follows word for word.
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

from eval.bench.base import Cells, Figures, Lengths, Policies, Result, Row, Seed, ThreadedOptions, bench
from eval.bench.runner import ask, build
from eval.errors import EvalError
from eval.options import Separated
from eval.reader.data import FRAMES, UNSEEN_FRAMES, Example, Maker, Question
from eval.reader.packing import Packer
from service.engine.async_engine import AsyncEngine
from service.engine.loading.checkpoint import load_model
from service.engine.params import SamplingParams
from service.reader.sentences import split
from service.reader.tokenizer import REFERENCES

log = structlog.get_logger(__name__)

NAME = "sparse_accuracy"
TASKS = ("passkey", "number", "quote", "kv")
POLICIES = ("dense", "auto", "quest", "lserve", "trianglemix", "minference", "flexprefill", "xattention")
ROOM = 256  # tokens for question and answer
PLANTED = {"passkey": 1, "number": 1, "kv": 3}  # statements a question: pairs that nobody asks for distract


@dataclass(frozen=True, kw_only=True)
class Options(ThreadedOptions):
    """Count the reader's right answers under each attention policy; the first policy is the reference."""

    text: Annotated[Path, Option(help="A text the reader was not trained on.")]
    lengths: Lengths = (4096, 16384, 32768)
    policies: Policies = POLICIES
    tasks: Annotated[tuple[str, ...], Separated(), Option(help="Tasks, separated by commas.")] = TASKS
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

    ``keep`` is given the figures so far after every context; ``earlier`` ones of the same questions are not asked for
    again.

    Raises:
        EvalError: an unknown task, or earlier figures of other questions.
    """
    if unknown := set(options.tasks) - set(TASKS):
        raise EvalError(f"unknown task {min(unknown)!r}", hint=f"There are {', '.join(TASKS)}.", param="tasks")
    loaded = load_model("embedded")
    packer = Packer(loaded.tokenizer)
    sentences = [s.words for s in split(options.text.read_text(encoding="utf-8"))]
    maker = Maker([sentences], packer.length, frames=(*FRAMES, *UNSEEN_FRAMES))
    asked = {"questions_a_context": options.questions, "contexts": options.contexts, "seed": options.seed}
    known = Cells(_known(earlier, asked))
    rows: list[Row] = []

    def figures() -> Figures:
        return {"model": "embedded", **asked, "rows": rows, "policies": summarise(rows)}

    for length in sorted(options.lengths):
        with build(loaded, 2.5 * length, prefix_cache=True, attention="auto") as engine:
            for task, number in product(options.tasks, range(options.contexts)):
                rng = random.Random(f"{options.seed}:{task}:{length}:{number}")
                example = make_example(maker, task, length - ROOM, options.questions, rng)
                place = {"length": length, "task": task, "context": number}
                for policy in options.policies:
                    row = next(iter(known.at(**place, policy=policy)), None)
                    if row is None:
                        row = place | _answers(engine, packer, example, policy)
                        log.info("answered", **row)
                    rows.append(row)
                keep(figures())
    return figures()


def _known(earlier: Figures | None, asked: dict[str, int]) -> list[Row]:
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
    if task == "quote":
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


def _answers(engine: AsyncEngine, packer: Packer, example: Example, policy: str) -> Row:
    """How many questions of a context the engine answers under a policy."""
    references = [packer.references[i % REFERENCES] for i in range(len(example.sentences))]
    context = packer.context(example.sentences, references)
    right, quoted, densities = 0, 0, []
    for question in example.questions:
        truth = packer.answer_ids(example, references, question.answer)
        ids = [*context, packer.question, *packer.encode(question.text), packer.answer]
        found = ask(engine, ids, SamplingParams(max_tokens=len(truth), attention=policy))
        said = found.token_ids
        known = said[0] in references and example.sentences[references.index(said[0])]
        is_right = known == example.sentences[question.answer]
        right += is_right
        quoted += is_right and said[1:] == truth[1:]
        densities.append(found.stats.get("prefill_density", 1.0))
    return {
        "policy": policy,
        "tokens": len(context),
        "questions": len(example.questions),
        "right": right,
        "quoted": quoted,
        "density": densities[0],  # of the question that read the context
    }


command = bench(Options, measure, NAME)

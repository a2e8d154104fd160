"""What each attention policy costs the reader in answers: pass keys, numbers, quotations and key–value pairs by length.

Contexts are consecutive sentences of a text the reader was not trained on, with statements planted at even depths. A
context is read once a policy and serves all of its questions from the prefix cache. Answers are greedy; a question is
*right* if the reference is that of the sentence asked for (or of one with the same words), *quoted* if the whole
sentence follows word for word.
"""

from __future__ import annotations

import json
import random
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import structlog
import typer

from eval.errors import EvalError
from eval.figures import RESULTS, command_line, report_result, save_result

if TYPE_CHECKING:
    from eval.reader.data import Example, Maker
    from eval.reader.train import Packer
    from service.engine.engine import Engine

log = structlog.get_logger(__name__)

NAME = "sparse_accuracy"
TASKS = ("passkey", "number", "quote", "kv")
POLICIES = ("dense", "auto", "quest", "lserve", "trianglemix", "minference", "flexprefill", "xattention")
ROOM = 256  # tokens for question and answer
PLANTED = {"passkey": 1, "number": 1, "kv": 3}  # statements a question: pairs that nobody asks for distract


def run(
    text: str,
    lengths: list[int],
    policies: list[str],
    tasks: list[str],
    *,
    questions: int,
    contexts: int,
    seed: int,
    earlier: dict[str, Any] | None = None,
    keep: Callable[[dict[str, Any]], object] = lambda figures: None,
) -> dict[str, Any]:
    """Rows of right and quoted answers by length, task and policy, and each policy's loss against the first.

    ``keep`` is given the figures so far after every context; ``earlier`` ones of the same questions are not asked for
    again.

    Raises:
        EvalError: an unknown task, or earlier figures of other questions.
    """
    from eval.reader.data import FRAMES, UNSEEN_FRAMES, Maker
    from eval.reader.train import Packer
    from service.engine.engine import Engine
    from service.engine.loading.checkpoint import load_model
    from service.reader.sentences import split

    if unknown := set(tasks) - set(TASKS):
        raise EvalError(f"unknown task {min(unknown)!r}", hint=f"There are {', '.join(TASKS)}.", param="tasks")
    loaded = load_model("embedded")
    packer = Packer(loaded.tokenizer)
    maker = Maker([[s.words for s in split(text)]], packer.length, frames=(*FRAMES, *UNSEEN_FRAMES))
    asked = {"questions_a_context": questions, "contexts": contexts, "seed": seed}
    known = _known(earlier, asked)
    rows: list[dict[str, Any]] = []

    def figures() -> dict[str, Any]:
        return {"model": "embedded", **asked, "rows": rows, "policies": summarise(rows)}

    for length in lengths:
        engine = Engine(loaded, _config(loaded.kv_shape, length))
        for task in tasks:
            for number in range(contexts):
                example = make_example(
                    maker, task, length - ROOM, questions, random.Random(f"{seed}:{task}:{length}:{number}")
                )
                for policy in policies:
                    row = known.get((length, task, number, policy))
                    if row is None:
                        row = {"length": length, "task": task, "context": number}
                        row |= _answers(engine, packer, example, policy)
                        log.info("answered", **row)
                    rows.append(row)
                keep(figures())
    return figures()


def _known(earlier: dict[str, Any] | None, asked: dict[str, int]) -> dict[tuple[Any, ...], dict[str, Any]]:
    """Earlier rows by length, task, context and policy."""
    if earlier is None:
        return {}
    for name, value in asked.items():
        if earlier[name] != value:
            raise EvalError(f"the earlier run had {name}={earlier[name]}, not {value}", hint="Give another --output.")
    return {(row["length"], row["task"], row["context"], row["policy"]): row for row in earlier["rows"]}


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
    from eval.reader.data import Example, Question

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


def _answers(engine: Engine, packer: Packer, example: Example, policy: str) -> dict[str, Any]:
    """How many questions of a context the engine answers under a policy."""
    from service.engine.request import SamplingParams
    from service.reader.tokenizer import REFERENCES

    references = [packer.references[i % REFERENCES] for i in range(len(example.sentences))]
    context = packer.context(example.sentences, references)
    right, quoted, density = 0, 0, None
    for question in example.questions:
        truth = packer.answer_ids(example, references, question.answer)
        ids = [*context, packer.question, *packer.encode(question.text), packer.answer]
        params = SamplingParams(max_tokens=len(truth), attention=policy)
        request = engine.add_request(ids, params)
        state = engine._requests[request].policy
        said: list[int] = []
        while engine.has_work:
            for output in engine.step():
                if output.error:
                    raise EvalError(f"{policy}: {output.error}")
                said += output.token_ids
        known = said[0] in references and example.sentences[references.index(said[0])]
        found = known == example.sentences[question.answer]
        right += found
        quoted += found and said[1:] == truth[1:]
        if density is None:  # the question that read the context
            density = state.prefill_stats.density if state is not None else 1.0
    return {
        "policy": policy,
        "tokens": len(context),
        "questions": len(example.questions),
        "right": right,
        "quoted": quoted,
        "density": density,
    }


def _config(shape: Any, length: int) -> Any:
    import torch

    from service.engine.config import EngineConfig

    return EngineConfig(kv_memory=int(2.5 * length * shape.bytes_per_token(torch.float32)), drafter="none")


def command(
    text: Annotated[Path, typer.Option(help="A text the reader was not trained on.")],
    lengths: Annotated[str, typer.Option(help="Tokens of a prompt, separated by commas.")] = "4096,16384,32768",
    policies: Annotated[
        str, typer.Option(help="Policies, separated by semicolons; the first is the reference.")
    ] = ";".join(POLICIES),
    tasks: Annotated[str, typer.Option(help="Tasks, separated by commas.")] = ",".join(TASKS),
    questions: Annotated[int, typer.Option(min=1, help="Questions a context.")] = 16,
    contexts: Annotated[int, typer.Option(min=1, help="Contexts of each length and task.")] = 1,
    seed: Annotated[int, typer.Option(help="Of contexts and questions.")] = 7,
    threads: Annotated[int, typer.Option(min=0, help="CPU threads; 0 leaves it to torch.")] = 0,
    output: Annotated[Path | None, typer.Option(help="File for the figures.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Ask only what the file of figures lacks.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures.")] = False,
) -> None:
    """Count the reader's right answers under each attention policy."""
    import torch

    if threads:
        torch.set_num_threads(threads)
    path = output or RESULTS / f"{NAME}.json"
    earlier = json.loads(path.read_text(encoding="utf-8"))["figures"] if resume and path.is_file() else None
    figures = run(
        text.read_text(encoding="utf-8"),
        sorted(int(n) for n in lengths.split(",")),
        [p for p in policies.split(";") if p],
        tasks.split(","),
        questions=questions,
        contexts=contexts,
        seed=seed,
        earlier=earlier,
        keep=lambda figures: save_result(NAME, figures, command_line(), path),
    )
    report_result(NAME, figures, as_json=as_json, output=path)

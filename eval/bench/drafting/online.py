"""What a trained drafter gains that goes on learning while it serves (Online Speculative Decoding, arXiv 2310.07177).

The prompts of one group of tasks come after those of another, so that what is served shifts. Each is answered once by
the drafter as it is and once by the one that learns, each with all that it has learned of the answers before; plain
decoding says which tokens are the right ones. Tokens a step are those of a group's first half and of its second, by
which there was something to learn from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from drafters.heads.folder import is_head
from drafters.learned import LearnedByOwner
from eval.bench.base import Figures, Model, Row, ThreadedOptions, Threads, bench
from eval.bench.drafting.prompts import ANSWERED, GROUPS, make_prompts
from eval.bench.drafting.timing import PLAIN, Timing, timed
from eval.errors import EvalError
from service.engine.async_engine import AsyncEngine
from service.engine.params import SamplingParams

AS_IT_IS, LEARNING = "as it is", "learning"


@dataclass(frozen=True, kw_only=True)
class Options(ThreadedOptions):
    """What a trained drafter gains by learning from the answers that it helps to write."""

    draft_model: Annotated[Path, Argument(help="Folder of the trained drafter.", exists=True, file_okay=False)]
    model: Model = "smollm2"
    threads: Threads = 2
    workload: Annotated[
        tuple[str, ...], Option(help=f"Groups of prompts, one after the other: {', '.join(GROUPS)}.")
    ] = ("math_reasoning", "translation")
    prompts: Annotated[int, Option(min=2, help="Prompts of each.")] = 24
    context: Annotated[int, Option(min=64, help="Tokens of a prompt, about.")] = 256
    max_tokens: Annotated[int, Option(min=2, help="Tokens of an answer.")] = 64
    share: Annotated[float, Option(min=0.01, max=0.2, help="Of the engine's time, for learning.")] = 0.2
    text: Annotated[Path, Option(help="Folder of text for the quoting workload.")] = Path("../shared/corpus")
    spec_bench: Annotated[Path, Option(help="Spec-Bench's prompts.")] = Path("../shared/spec_bench/question.jsonl")


def run(options: Options) -> Figures:
    """Two rows a group of prompts."""
    if not is_head(str(options.draft_model)):
        raise EvalError(f"{options.draft_model} is not the folder of a trained drafter", hint="Make one: folio train.")
    ways = {AS_IT_IS: "trained:paced=false", LEARNING: f"trained:paced=false,online={options.share:g}"}
    rows: list[Row] = []
    with AsyncEngine.from_pretrained(
        options.model,
        draft_model=str(options.draft_model),
        threads=options.threads,
        attention="dense",
    ) as engine:
        drafting = engine.engine.drafting
        learned = {way: LearnedByOwner(engine.engine.config.learned_memory) for way in (PLAIN, *ways)}
        head = drafting.resources.head
        for workload in options.workload:
            made = make_prompts(engine, workload, options.context, options.prompts, options.text, options.spec_bench)
            params = SamplingParams(max_tokens=options.max_tokens, ignore_eos=workload not in ANSWERED)
            answers: dict[str, list[Timing]] = {way: [] for way in learned}
            for prompt in made.ids:
                for way in learned:
                    drafting.learned = learned[way]
                    drafter = ways.get(way, PLAIN)
                    answers[way].append(timed(engine, [prompt], replace(params, drafter=drafter), drafter))
            half = len(made.ids) // 2
            for name, part in (("first", slice(half)), ("second", slice(half, None))):
                rows.append({"workload": workload, "half": name} | _row({way: a[part] for way, a in answers.items()}))
    return {
        **options.told("model", "prompts", "context", "max_tokens", "share"),
        "head": head.name if head is not None else None,
        "rows": rows,
    }


def _row(answers: dict[str, Sequence[Timing]]) -> Row:
    joined = {way: Timing.joined(own) for way, own in answers.items()}
    lengths = {way: joined[way].drafting["accepted_length"] for way in (AS_IT_IS, LEARNING)}
    return {
        "answers": len(joined[PLAIN].ids),
        "tokens_a_step": lengths[AS_IT_IS],
        "tokens_a_step_learning": lengths[LEARNING],
        "gain": lengths[LEARNING] / lengths[AS_IT_IS],
        "drafts_accepted_gain": _accepted(joined[LEARNING]) / max(_accepted(joined[AS_IT_IS]), 1e-9),
        "identical": all(one.ids == joined[PLAIN].ids for one in joined.values()),
    }


def _accepted(timing: Timing) -> float:
    """Draft tokens accepted a step."""
    return timing.drafting["accepted_length"] - 1


command = bench(Options, run, "online")

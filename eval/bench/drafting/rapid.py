"""RAPID (Chen et al. 2025, arXiv 2502.20330) on real models: what a drafter that reads the retrieved chunks saves, and
what its knowledge transfer (``target_mix``, the paper's eta) changes, side by side.

Questions over long prompts of paragraphs from a file of SQuAD's format. The drafter reads the question and the
paragraphs that BM25 finds for it, as the service's retrieval would give it; it is the model itself, and with
``--draft-model`` another one too, weaker or stronger. All ways answer each question in turn behind the same prompt,
whose KV is in the prefix cache, so that what is timed is decoding and the drafter's own reading. With eta 0 the tokens
are those of plain decoding; with more they are another distribution's, and scored beside them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from math import sqrt
from statistics import fmean, median, stdev
from typing import Annotated, Any

import numpy as np
from typer import Option

from eval.bench.base import Figures, Model, NewTokens, Row, Seed, Squad, ThreadedOptions, Threads, bench
from eval.errors import EvalError
from eval.harness.prompting import LayoutPrompter, layout_question
from eval.options import Separated
from eval.qa.scoring import best_f1
from eval.tasks.example import Example
from eval.tasks.generate import generate
from eval.tasks.paragraphs import ParagraphQuestions
from retrieval.analysis.terms import terms
from retrieval.index.sparse import SparseIndex
from service.answering.passages import Passage
from service.answering.prompting.layouts import PromptLayout
from service.engine.async_engine import AsyncEngine
from service.engine.params import DraftSources, SamplingParams
from service.errors import InvalidRequest
from service.models import layout_for

PLAIN = "none"
TASK = "qa_1-style"


@dataclass(frozen=True, kw_only=True)
class Options(ThreadedOptions):
    """What RAPID's drafters save, and what its knowledge transfer changes."""

    data: Squad
    model: Model = "smollm2"
    draft_model: Annotated[str | None, Option(help="A checkpoint that drafts too, weaker or stronger.")] = None
    threads: Threads = 2
    eta: Annotated[tuple[float, ...], Separated(), Option(help="Knowledge transfer, separated by commas.")] = (
        0.0,
        5.0,
        10.0,
        20.0,
    )
    questions: Annotated[int, Option(min=1, help="Questions asked.")] = 20
    context: Annotated[int, Option(min=256, help="Tokens of a prompt and its answer.")] = 4096
    chunks: Annotated[int, Option(min=64, help="Most tokens of retrieved paragraphs for the drafter.")] = 512
    dtype: Annotated[str, Option(help="Of the model.")] = "auto"
    new_tokens: NewTokens = 48
    seed: Seed = 0


@dataclass
class Asked:
    """One answer: its tokens, seconds from a prompt that is read to its end, F1, and the engine's counts."""

    ids: list[int]
    seconds: float
    f1: float
    drafting: dict[str, Any]


def run(options: Options) -> Figures:
    """A row a reader of the chunks and eta, plain decoding first."""
    with AsyncEngine.from_pretrained(
        options.model, draft_model=options.draft_model, threads=options.threads, dtype=options.dtype, attention="dense"
    ) as engine:
        loaded = engine.engine.loaded
        layout = layout_for(loaded.name, loaded.tokenizer, parameters=loaded.num_parameters)
        prompter = LayoutPrompter(loaded.tokenizer, layout)
        made = generate(
            TASK,
            ParagraphQuestions.of_file(TASK, options.data),
            prompter,
            length=options.context,
            new_tokens=options.new_tokens,
            count=options.questions,
            seed=options.seed,
        )
        readers = ["self", *(["draft_model"] if options.draft_model else [])]
        ways = [PLAIN, *(_way(reader, eta) for reader in readers for eta in options.eta)]
        asked: dict[str, list[Asked]] = {way: [] for way in ways}
        refused: dict[str, str] = {}
        for number, example in enumerate(islice(made, options.questions)):
            prompt = prompter.build(example, options.context - options.new_tokens)
            sources = DraftSources(prompt=_shortened(engine, layout, example, options.chunks))
            _ask(engine, prompt.ids, PLAIN, None, example, 1)  # whoever comes first finds the prompt read
            for at in range(len(ways)):
                way = ways[(at + number) % len(ways)]
                if way not in refused:
                    try:
                        asked[way].append(_ask(engine, prompt.ids, way, sources, example, options.new_tokens))
                    except InvalidRequest as error:
                        refused[way] = error.message
    return {
        **options.told("model", "draft_model", "questions", "context", "chunks", "new_tokens", "seed", "dtype"),
        "data": options.data.name,
        "rows": [_row(way, asked[way], asked[PLAIN], refused.get(way)) for way in ways],
    }


def _way(reader: str, eta: float) -> str:
    return f"rag:model={reader}" + (f",target_mix={eta:g}" if eta else "")


def _shortened(engine: AsyncEngine, layout: PromptLayout, example: Example, most: int) -> list[int]:
    """The question behind the paragraphs of its context that BM25 finds, best first, while they fit."""
    texts = example.context.split("\n\n")
    scores = SparseIndex.build([terms(text) for text in texts]).scores(terms(layout_question(example)))
    found: list[Passage] = []
    room = most
    for i in np.argsort(-scores, kind="stable").tolist():
        room -= len(engine.tokenizer.encode(texts[i], add_special_tokens=False))
        if room < 0 and found:
            break
        found.append(Passage(f"p{i}", f"p{i}", 0, len(texts[i]), None, texts[i]))
    return list(layout.build(layout_question(example), found).ids)


def _ask(
    engine: AsyncEngine,
    prompt: Sequence[int],
    way: str,
    sources: DraftSources | None,
    example: Example,
    new_tokens: int,
) -> Asked:
    [found] = engine.generate([prompt], SamplingParams(max_tokens=new_tokens, drafter=way), [sources])
    if found.error is not None:
        raise EvalError(f"the engine failed with {way}: {found.error}")
    gold = [text for accepted in example.answer for text in accepted]
    return Asked(found.token_ids, found.times[-1], best_f1(found.text, gold, "en"), found.stats.get("drafting", {}))


def _row(way: str, answers: Sequence[Asked], plain: Sequence[Asked], refused: str | None) -> Row:
    """F1 and its difference from plain decoding in points, tokens a second and how many times faster, tokens a step.

    ``refused``: why the engine does not decode this way, which then has no figures.
    """
    if refused is not None:
        return {"way": way, "refused": refused}
    pairs = list(zip(answers, plain, strict=True))
    gained = [100 * (one.f1 - other.f1) for one, other in pairs]
    rates = [(len(one.ids) / one.seconds, len(other.ids) / other.seconds) for one, other in pairs]
    steps = sum(one.drafting.get("steps", 0) for one in answers)
    return {
        "way": way,
        "f1": fmean(one.f1 for one in answers),
        "f1_points": fmean(gained),
        "f1_points_error": stdev(gained) / sqrt(len(gained)) if len(gained) > 1 else None,
        "same_ids": fmean(one.ids == other.ids for one, other in pairs),
        "tokens_per_s": median(own for own, _ in rates),
        "speedup": median(own / other for own, other in rates),
        "tokens_a_step": sum(len(one.ids) for one in answers) / steps if steps else None,
    }


command = bench(Options, run, "rapid")

"""Answers over passages whose KV was read before (`blend`), beside exact ones: first token, agreement, right answers.

A library of passages is made of the paragraphs of a file of SQuAD's format, each of some hundred tokens. Questions are
drawn with Zipf weights over the passages; each prompt holds the passage of its question and those that BM25 finds next,
in the service's own words. All policies answer each question in turn, in one engine with its prefix cache; the exact
answer is the reference.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, median
from typing import Annotated, Any

import numpy as np
from typer import Argument, Option

from eval.bench.base import Figures, Model, NewTokens, Policies, Row, Seed, ThreadedOptions, Threads, bench
from eval.bench.runner import agreeing
from eval.errors import EvalError
from eval.qa.dataset import Dataset, Item, load
from eval.qa.scoring import best_f1
from retrieval.analysis.terms import terms
from retrieval.index.sparse import SparseIndex
from service.answering.passages import Passage
from service.answering.prompting.layouts import Prompt, choose_layout
from service.engine.async_engine import AsyncEngine
from service.engine.outputs import Generation
from service.engine.params import SamplingParams
from service.engine.spans import PassageSpans

EXACT = "dense"


@dataclass(frozen=True, kw_only=True)
class Options(ThreadedOptions):
    """Answers over passages that were read before, beside exact ones."""

    data: Annotated[Path, Argument(help="Questions and documents: a file of SQuAD's format.")]
    model: Model = "smollm2"
    threads: Threads = 2
    policies: Policies = ("blend:first=0", "blend:first=16", "blend:first=64")
    questions: Annotated[int, Option(min=1, help="Questions asked.")] = 40
    passages: Annotated[int, Option(min=1, help="Passages in a prompt.")] = 5
    least_tokens: Annotated[int, Option(min=1, help="Paragraphs are joined until a passage has so many.")] = 300
    passage_dtype: Annotated[str, Option(help="Of kept passages: auto or int8.")] = "auto"
    no_preface: Annotated[bool, Option("--no-preface", help="Read passages without the prompt's first tokens.")] = False
    new_tokens: NewTokens = 48
    seed: Seed = 0


@dataclass
class Asked:
    """What one policy answered to one question."""

    ids: list[int]
    first_s: float
    whole_s: float
    f1: float
    all_found: bool


@dataclass
class Library:
    """Passages, those of each document's name, and an index over them."""

    passages: list[Passage]
    index: SparseIndex = field(init=False)

    def __post_init__(self) -> None:
        self.index = SparseIndex.build([terms(passage.text) for passage in self.passages])

    def found(self, item: Item, count: int) -> list[Passage]:
        """The passage of a question's document, then the best others."""
        own = next(passage for passage in self.passages if item.document in passage.name.split(" + "))
        best = np.argsort(-self.index.scores(terms(item.question)), kind="stable").tolist()
        return [own, *(self.passages[i] for i in best if self.passages[i] is not own)][:count]


def run(options: Options) -> Figures:
    """A row a policy: medians of the time to the first token (where all passages were kept, and where some had to be
    read), how many answers have the ids of the exact one, the token at which others part, and F1 against the gold.
    """
    config: dict[str, Any] = {"passage_dtype": options.passage_dtype, "passage_memory": 4 << 30}
    engine = AsyncEngine.from_pretrained(
        options.model, threads=options.threads, drafter="none", attention=EXACT, **config
    )
    with engine:
        layout = choose_layout(engine.tokenizer, engine.engine.loaded.num_parameters)
        dataset = load(options.data)
        library = Library(list(_joined(dataset, engine, options.least_tokens)))
        asked: dict[str, list[Asked]] = {policy: [] for policy in (EXACT, *options.policies)}
        lengths = []
        for item in _drawn(dataset, options.questions, options.seed):
            prompt = layout.build(item.question, library.found(item, options.passages))
            lengths.append(len(prompt.ids))
            for policy in _in_turn(list(asked), len(lengths)):
                asked[policy].append(_ask(engine, prompt, item, policy, options))
        stats = engine.engine.stats()
        kept = [kept.num_bytes / kept.num_tokens for kept in engine.engine.blending.store]
    return {
        **options.told("model", "questions", "passages", "new_tokens", "seed", "passage_dtype", "no_preface"),
        "data": options.data.name,
        "library": len(library.passages),
        "prompt_tokens_median": median(lengths),
        "bytes_per_token": fmean(kept) if kept else None,
        "passage_hit_rate": stats["passage_hits"] / max(1, stats["passage_queries"]),
        "rows": [_row(policy, answers, asked[EXACT]) for policy, answers in asked.items()],
    }


def _joined(dataset: Dataset, engine: AsyncEngine, least: int) -> list[Passage]:
    """Paragraphs one after another until there are so many tokens; the last of an article may have fewer."""
    made: list[Passage] = []
    names: list[str] = []
    text = ""
    for name, paragraph in dataset.documents.items():
        if not isinstance(paragraph, str):
            raise EvalError(f"{name} is a file, not a paragraph", hint="Give a file of SQuAD's format.", param="data")
        names.append(name)
        text = f"{text}\n{paragraph}" if text else paragraph
        if len(engine.tokenizer.encode(text, add_special_tokens=False)) >= least:
            made.append(Passage(f"p{len(made)}", " + ".join(names), 0, len(text), None, text))
            names, text = [], ""
    return made


def _drawn(dataset: Dataset, count: int, seed: int) -> Sequence[Item]:
    """Questions by Zipf's law over the documents, in an order drawn with the seed."""
    rng = np.random.default_rng(seed)
    by_document: dict[str, list[Item]] = {}
    for item in dataset.items:
        by_document.setdefault(item.document, []).append(item)
    names = list(by_document)
    rng.shuffle(names)
    weights = 1 / np.arange(1, len(names) + 1)
    drawn = rng.choice(len(names), count, p=weights / weights.sum())
    return [by_document[names[i]][int(rng.integers(len(by_document[names[i]])))] for i in drawn]


def _in_turn(policies: list[str], number: int) -> list[str]:
    at = number % len(policies)
    return policies[at:] + policies[:at]


def _ask(engine: AsyncEngine, prompt: Prompt, item: Item, policy: str, options: Options) -> Asked:
    spans = prompt.spans
    if spans is None:
        raise EvalError("the model's prompts do not tell where passages lie", param="model")
    if options.no_preface:
        spans = PassageSpans(0, spans.passages)
    params = SamplingParams(max_tokens=options.new_tokens, attention=policy, drafter="none")
    [found] = engine.generate([prompt.ids], params, spans=[spans])
    if found.error is not None:
        raise EvalError(f"the engine failed: {found.error}")
    return _judged(found, item)


def _judged(found: Generation, item: Item) -> Asked:
    gold = [" ".join(parts) for parts in item.answers]
    kept = found.stats.get("passage_hits") == found.stats.get("passage_tokens")
    f1 = best_f1(found.text, gold, item.language)
    return Asked(found.token_ids, found.times[0], found.times[-1], f1, kept)


def _row(policy: str, answers: Sequence[Asked], exact: Sequence[Asked]) -> Row:
    kept = [one.first_s for one in answers if one.all_found]
    read = [one.first_s for one in answers if not one.all_found]
    exact_first = median(other.first_s for one, other in zip(answers, exact, strict=True) if one.all_found or not kept)
    parted = [agreeing(one.ids, other.ids) for one, other in zip(answers, exact, strict=True) if one.ids != other.ids]
    return {
        "policy": policy,
        "first_token_ms": 1e3 * median(kept) if kept else None,
        "speedup": exact_first / median(kept) if kept else None,
        "first_token_with_reading_ms": 1e3 * median(read) if read else None,
        "answer_ms": 1e3 * median(one.whole_s for one in answers),
        "same_ids": 1 - len(parted) / len(answers),
        "parts_at_token": median(parted) if parted else None,
        "f1": fmean(one.f1 for one in answers),
    }


command = bench(Options, run, "bench_blend")

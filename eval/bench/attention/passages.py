"""Answers over passages whose KV was read before (`blend`), beside exact ones: first token, agreement, right answers.

A library of passages of 300 to 500 tokens is made of the paragraphs of a file of SQuAD's format, and filled with text
from this machine. Questions are drawn by Zipf's law over the paragraphs' passages; each prompt holds the passage of its
question and those that BM25 finds next, in the service's own words. All policies answer each question in turn, in one
engine with its prefix cache, from passages kept as the model has them and from those kept in int8; the exact answer is
the reference. With ``--canary`` each blended answer is read again densely, which tells of each of its tokens whether
the exact model would have chosen it: an answer of forty tokens parts from the exact one soon, though nearly all its
tokens are the right ones. Then passages of the model's shape are read from disk, as after a restart.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice, product
from math import sqrt
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Annotated, Any

import numpy as np
import torch
from typer import Option

from eval.bench.base import (
    Figures,
    Model,
    NewTokens,
    Policies,
    Row,
    Seed,
    Squad,
    Texts,
    ThreadedOptions,
    Threads,
    bench,
)
from eval.bench.retrieval.knowledge_base import default_folders, files, prose
from eval.bench.runner import agreeing
from eval.errors import EvalError
from eval.options import Separated
from eval.qa.dataset import Dataset, Item, load
from eval.qa.scoring import best_f1
from retrieval.analysis.terms import terms
from retrieval.index.sparse import SparseIndex
from service.answering.passages import Passage
from service.answering.prompting.layouts import Prompt, choose_layout
from service.engine.async_engine import PASSAGES_A_FILE, AsyncEngine
from service.engine.kv.passage_store import PassageFiles, PassageKV, PassageStore
from service.engine.options import parse_policy
from service.engine.outputs import Generation
from service.engine.params import SamplingParams
from service.engine.spans import PassageSpans

EXACT = "dense"
MEMORY = 4 << 30
WORDS = 240
"""words of a passage that fills the library; those with too few or too many tokens are left out"""


@dataclass(frozen=True, kw_only=True)
class Options(ThreadedOptions):
    """Answers over passages that were read before, beside exact ones."""

    data: Squad
    model: Model = "smollm2"
    threads: Threads = 2
    policies: Policies = ("blend:first=16",)
    kept: Annotated[tuple[str, ...], Separated(), Option(help="How passages are kept: auto, int8.")] = ("auto", "int8")
    questions: Annotated[int, Option(min=1, help="Questions asked.")] = 40
    passages: Annotated[int, Option(min=1, help="Passages in a prompt.")] = 5
    library: Annotated[int, Option(min=1, help="Passages that are searched.")] = 2_000
    least_tokens: Annotated[int, Option(min=1, help="Of a passage.")] = 300
    most_tokens: Annotated[int, Option(min=1, help="Of a passage.")] = 500
    text: Texts = ()
    no_preface: Annotated[bool, Option("--no-preface", help="Read passages without the prompt's first tokens.")] = False
    canary: Annotated[bool, Option("--canary", help="Also tell how many tokens the exact model would choose.")] = False
    on_disk: Annotated[int, Option(min=0, help="Passages read from disk as after a restart; 0 for none.")] = 2_000
    new_tokens: NewTokens = 48
    seed: Seed = 0


@dataclass
class Asked:
    """What one policy answered to one question.

    Attributes:
        first_s: to the first token, all passages being kept.
        whole_s: to the last, then.
        reading_s: to the first token where some passages had to be read; None where none had.
        computed: share of the prompt that was not copied.
        chosen: of its tokens that were compared, those that the exact model would have chosen.
    """

    ids: list[int]
    first_s: float
    whole_s: float
    f1: float
    reading_s: float | None
    computed: float
    chosen: int = 0
    compared: int = 0


@dataclass
class Library:
    """Passages, and an index over them; the names of a passage's paragraphs are joined in its own."""

    passages: list[Passage]
    index: SparseIndex = field(init=False)

    def __post_init__(self) -> None:
        self.index = SparseIndex.build([terms(passage.text) for passage in self.passages])
        self.holding = {name: passage for passage in self.passages for name in passage.name.split(" + ")}

    def found(self, item: Item, count: int) -> list[Passage]:
        """The passage of a question's document, then the best others."""
        own = self.holding[item.document]
        best = np.argsort(-self.index.scores(terms(item.question)), kind="stable").tolist()
        return [own, *(self.passages[i] for i in best if self.passages[i] is not own)][:count]


@dataclass(frozen=True)
class Way:
    """A policy, and where its passages are kept."""

    policy: str
    kept: str
    store: PassageStore


def run(options: Options) -> Figures:
    """A row a policy and kind of store (`_row`), what a token takes in each store, and passages from disk."""
    engine = AsyncEngine.from_pretrained(
        options.model,
        threads=options.threads,
        drafter="none",
        attention=EXACT,
        passage_memory=MEMORY,
        canary=float(options.canary),
        canary_bound=0.0,
    )
    with engine:
        layout = choose_layout(engine.tokenizer, engine.engine.loaded.num_parameters)
        dataset = load(options.data)
        library = Library(_library(dataset, engine, options))
        stores = {kind: PassageStore(MEMORY, int8=kind == "int8") for kind in options.kept}
        exact = Way(EXACT, "", engine.engine.blending.store)
        ways = [exact, *(Way(policy, kind, stores[kind]) for policy, kind in product(options.policies, stores))]
        asked: list[list[Asked]] = [[] for _ in ways]
        lengths = []
        for number, item in enumerate(_drawn(dataset, library, options.questions, options.seed)):
            prompt = layout.build(item.question, library.found(item, options.passages))
            lengths.append(len(prompt.ids))
            for at in range(len(ways)):
                turn = (at + number) % len(ways)
                asked[turn].append(_ask(engine, prompt, item, ways[turn], options))
        disk = [_from_disk(engine, kind, options) for kind in options.kept if options.on_disk]
    stored = [
        {
            "kept": kind,
            "bytes_per_token": fmean(one.num_bytes / one.num_tokens for one in store),
            "hit_rate": store.hits / store.queries,
        }
        for kind, store in stores.items()
        if len(store)
    ]
    return {
        **options.told("model", "questions", "passages", "new_tokens", "seed", "no_preface"),
        "data": options.data.name,
        "library": len(library.passages),
        "prompt_tokens_median": median(lengths),
        "rows": [_row(way, answers, asked[0]) for way, answers in zip(ways, asked, strict=True)],
        "stored": stored,
        "disk": disk,
    }


def _library(dataset: Dataset, engine: AsyncEngine, options: Options) -> list[Passage]:
    """The passages that hold the dataset's paragraphs, and as many others as the library wants."""
    least, most = options.least_tokens, options.most_tokens
    fitting = [p for p in _joined(dataset, engine, least) if _tokens(engine, p.text) <= most]
    if not fitting:
        raise EvalError(f"no paragraphs of {options.data.name} make a passage of {least} to {most} tokens")
    missing = max(0, options.library - len(fitting))
    others = list(islice(_others(engine, options), missing))
    if len(others) < missing:
        raise EvalError(
            f"{len(fitting) + len(others):,} passages can be made of the texts, {options.library:,} are wanted",
            hint="Name more folders with --text, or ask for a smaller --library.",
        )
    return fitting + others


def _joined(dataset: Dataset, engine: AsyncEngine, least: int) -> Iterator[Passage]:
    """Paragraphs one after another until there are so many tokens."""
    names: list[str] = []
    text = ""
    for name, paragraph in dataset.documents.items():
        if not isinstance(paragraph, str):
            raise EvalError(f"{name} is a file, not a paragraph", hint="Give a file of SQuAD's format.", param="data")
        names.append(name)
        text = f"{text}\n{paragraph}" if text else paragraph
        if _tokens(engine, text) >= least:
            joined = " + ".join(names)
            yield Passage(joined, joined, 0, len(text), None, text)
            names, text = [], ""


def _others(engine: AsyncEngine, options: Options) -> Iterator[Passage]:
    """Pieces of the texts on this machine that have as many tokens as a passage."""
    for file in files([*options.text, *default_folders()]):
        words = " ".join(prose(file)).split()
        for start in range(0, len(words) - WORDS, WORDS):
            text = " ".join(words[start : start + WORDS])
            if options.least_tokens <= _tokens(engine, text) <= options.most_tokens:
                name = f"{file.name} {start}"
                yield Passage(name, name, 0, len(text), None, text)


def _tokens(engine: AsyncEngine, text: str) -> int:
    return len(engine.tokenizer.encode(text, add_special_tokens=False))


def _drawn(dataset: Dataset, library: Library, count: int, seed: int) -> Sequence[Item]:
    """Questions by Zipf's law over the paragraphs in the library, in an order drawn with the seed."""
    rng = np.random.default_rng(seed)
    by_document: dict[str, list[Item]] = {}
    for item in dataset.items:
        if item.document in library.holding:
            by_document.setdefault(item.document, []).append(item)
    names = list(by_document)
    rng.shuffle(names)
    weights = 1 / np.arange(1, len(names) + 1)
    drawn = rng.choice(len(names), count, p=weights / weights.sum())
    return [by_document[names[i]][int(rng.integers(len(by_document[names[i]])))] for i in drawn]


def _ask(engine: AsyncEngine, prompt: Prompt, item: Item, way: Way, options: Options) -> Asked:
    spans = prompt.spans
    if spans is None:
        raise EvalError("the model's prompts do not tell where passages lie", param="model")
    if options.no_preface:
        spans = PassageSpans(0, spans.passages)
    engine.run(lambda own: setattr(own.blending, "store", way.store)).result()
    params = SamplingParams(max_tokens=options.new_tokens, attention=way.policy, drafter="none")
    before = _compared(engine, way.policy)
    found = _generate(engine, prompt, params, spans)
    chosen, compared = (now - then for now, then in zip(_compared(engine, way.policy), before, strict=True))
    again = None
    if found.stats.get("passage_hits") != found.stats.get("passage_tokens"):  # now all are kept
        again = _generate(engine, prompt, replace(params, max_tokens=1), spans)
    return replace(_judged(found, again, item), chosen=chosen, compared=compared)


def _generate(engine: AsyncEngine, prompt: Prompt, params: SamplingParams, spans: PassageSpans) -> Generation:
    [found] = engine.generate([prompt.ids], params, spans=[spans])
    if found.error is not None:
        raise EvalError(f"the engine failed: {found.error}")
    while engine.run(lambda own: own.canary.has_work).result():
        time.sleep(0.02)
    return found


def _compared(engine: AsyncEngine, policy: str) -> tuple[int, int]:
    """Of a policy's answers so far the tokens that the exact model would have chosen, and all."""
    found = engine.engine.canary.compared.get(parse_policy(policy).cache_key())
    return (found.agreeing, found.tokens) if found is not None else (0, 0)


def _judged(found: Generation, again: Generation | None, item: Item) -> Asked:
    """again: its first token once more, where passages had to be read for it."""
    gold = [" ".join(parts) for parts in item.answers]
    stats = found.stats
    first = (again or found).times[0]
    whole = first + found.times[-1] - found.times[0]
    computed = 1 - stats.get("filled_tokens", 0) / stats["prompt_tokens"]
    f1 = best_f1(found.text, gold, item.language)
    return Asked(found.token_ids, first, whole, f1, found.times[0] if again is not None else None, computed)


def _row(way: Way, answers: Sequence[Asked], exact: Sequence[Asked]) -> Row:
    """Medians of the time to the first token (all passages being kept, and where some had to be read), how many
    answers have the ids of the exact one, how much of it they share up to where they part, the share of their tokens
    that the exact model would have chosen, and F1 against the right answer, whose difference is in points with its
    standard error.
    """
    pairs = list(zip(answers, exact, strict=True))
    first, exact_first = (median(one.first_s for one in own) for own in (answers, exact))
    read = [one.reading_s for one in answers if one.reading_s is not None]
    same = [agreeing(one.ids, other.ids) / max(1, len(other.ids)) for one, other in pairs]
    compared = sum(one.compared for one in answers)
    lost = [100 * (one.f1 - other.f1) for one, other in pairs]
    return {
        "policy": way.policy,
        "kept": way.kept,
        "first_token_ms": 1e3 * first,
        "speedup": exact_first / first,
        "first_token_with_reading_ms": 1e3 * median(read) if read else None,
        "answer_ms": 1e3 * median(one.whole_s for one in answers),
        "computed": fmean(one.computed for one in answers),
        "same_ids": fmean(one.ids == other.ids for one, other in pairs),
        "agreeing": fmean(same),
        "chosen": sum(one.chosen for one in answers) / compared if compared else None,
        "f1": fmean(one.f1 for one in answers),
        "f1_points": fmean(lost),
        "f1_points_error": stdev(lost) / sqrt(len(lost)) if len(lost) > 1 else None,
    }


def _from_disk(engine: AsyncEngine, kind: str, options: Options) -> Row:
    """Seconds to know of passages in a new process, to load those of some questions, and to load all, hashes checked.

    Their numbers are drawn; they have the model's shape, precision, and 400 tokens each.
    """
    pool, tokens, rng = engine.engine.runner.pool, 400, np.random.default_rng(options.seed)
    shape = (2, pool.shape.num_layers, tokens, pool.shape.num_kv_heads, pool.shape.head_dim)
    dtype = pool.dtype if pool.dtype.is_floating_point else torch.float32
    drawn = [
        PassageKV.of(k, v, 30, kind == "int8") for k, v in torch.randn((PASSAGES_A_FILE, *shape)).to(dtype).unbind()
    ]
    keys = [number.to_bytes(4) for number in range(options.on_disk)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        written = PassageFiles(folder)
        for first in range(0, len(keys), PASSAGES_A_FILE):
            written.write(f"{first:06d}", dict(zip(keys[first:], drawn, strict=False)))
        size = sum(path.stat().st_size for path in folder.iterdir())
        weights = 1 / np.arange(1, len(keys) + 1)
        asked = rng.permutation(len(keys))[rng.choice(len(keys), 100 * options.passages, p=weights / weights.sum())]
        began = time.perf_counter()
        again = PassageFiles(folder)
        known = time.perf_counter() - began
        for number in dict.fromkeys(asked.tolist()):
            _present(again.load(keys[number]))
        some = time.perf_counter() - began
        for key in keys:
            _present(again.load(key))
        every = time.perf_counter() - began
    return {
        "kept": kind,
        "passages": len(keys),
        "tokens": tokens,
        "bytes": size,
        "known_s": known,
        "asked": len(set(asked.tolist())),
        "asked_s": some,
        "all_s": every,
    }


def _present(kept: Any) -> None:
    if kept is None:
        raise EvalError("a passage that was written does not come back from disk")


command = bench(Options, run, "bench_passages")

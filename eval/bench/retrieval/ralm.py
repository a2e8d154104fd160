"""Iterative retrieval, sequential against speculative (RaLMSpec, 2401.14021), by wall clock over many passages.

Every row is a model, a retriever and a mode (iterative, flare, iter-retgen). Every question is answered by the
sequential loop and by every way of speculating, in turn, each beginning with an empty prefix cache, and all must give
the same token ids. With several rounds the fastest of each way counts, since what else runs on a machine only ever
slows. The knowledge base is windows over the documents of this machine, embedded once (``knowledge_base``); or, with
``--dataset``, the paragraphs of a file of SQuAD's format, whose questions are asked, and whose answers are held to the
right ones beside the speed. A run may be cut into pieces: with a time limit it stops in good order, and ``--resume``
goes on with what the result file has.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import numpy as np
from typer import Option

from eval.bench.base import BenchOptions, Figures, Result, Texts, bench
from eval.bench.beside_transformers import random_llama
from eval.bench.retrieval.knowledge_base import KnowledgeBase, cache_folder, embed, knowledge_base
from eval.bench.runner import build
from eval.errors import EvalError
from eval.qa import dataset, scoring
from eval.qa.dataset import Dataset, Item
from retrieval.analysis.terms import terms
from retrieval.embedding.embedder import SentenceEmbedder
from retrieval.embedding.encoding import AS_IT_IS
from retrieval.index.batching import Batcher
from retrieval.index.dense import DenseIndex
from retrieval.index.generation import Generation, Manifest
from retrieval.index.snapshot import Snapshot
from retrieval.index.sparse import SparseIndex
from retrieval.iterative.retrievers import DenseRetriever, Encode, SnapshotRetriever, SparseRetriever
from retrieval.iterative.speculation import IterativeRetrieval, Retriever
from retrieval.iterative.strides import Experiences, SpeculationOptions
from retrieval.types import Hit
from service.answering.prompting.layouts import PromptLayout
from service.answering.question import STEPWISE, Iterative, Question
from service.answering.stride_writers import WRITERS, QueryText, query_tokens
from service.engine.loading.checkpoint import load_model, prepare
from service.engine.params import SamplingParams
from service.models import layout_for
from service.reader.layout import ReaderLayout
from service.settings import EMBEDDED

MODELS = (EMBEDDED, "llama-27m")
TARGETS = {"exact": 2.39, "flat": 2.39, "hnsw": 1.39, "bm25": 1.77}
"""The best of the paper's means for exact dense, approximate dense and sparse retrieval. ``exact`` is a library's own
search, one pass in bfloat16 and exact scores after it. ``flat`` is FAISS' own search of the same vectors for a single
query; a batch is searched as ``exact`` is, because FAISS takes more than twice as long for 16 queries as for one."""
OF_CEILING = 0.85
PREFETCH = {"exact": 64, "flat": 64, "hnsw": 16, "bm25": 16}
"""chunks a search brings to the cache; 16 leaves an HNSW search as deep as it is for the best chunk alone"""
FIXED = (1, 2, 4, 8, 16)
"""strides to one search that OS³ is compared with"""
MAX_LENGTH = 2048
PAGE_SIZE = 16
"""tokens: the part of a page that a stride computes anew is at most this, on both sides"""


@dataclass(frozen=True)
class Way:
    """A way of writing: sequential, or speculative with these options."""

    name: str
    options: SpeculationOptions
    speculate: bool = True


def ways(prefetch: int, sweep: bool) -> list[Way]:
    """How a question is answered, first sequentially; with ``sweep`` also in the ways that OS³ is compared with."""
    found = [
        Way("sequential", SpeculationOptions(prefetch=prefetch), speculate=False),
        Way("os3", SpeculationOptions(prefetch=prefetch)),
    ]
    if not sweep:
        return found
    beside = Way("os3_overlap", SpeculationOptions(prefetch=prefetch, overlap=True))
    return [*found, beside, *(Way(f"s{s}", SpeculationOptions(s, prefetch=prefetch)) for s in FIXED)]


@dataclass
class Record:
    """One question answered in one way."""

    seconds: float
    tokens: list[int]
    figures: dict[str, Any]
    text: str = ""


class Base:
    """The passages as a library gives them."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._texts = texts

    def hits(self, ids: Sequence[int], owner: str) -> list[Hit]:
        """See ``Library.hits``."""
        return [Hit(i, str(i), str(i), 0, len(self._texts[i]), 1, 0.0, self._texts[i]) for i in ids]


class Bench:
    """One model over one knowledge base."""

    def __init__(self, model: str, mode: str, base: KnowledgeBase, options: Options) -> None:
        self.base = Base(base.texts)
        self.mode: Any = mode
        self.params = SamplingParams(
            max_tokens=options.tokens, ignore_eos=options.dataset is None, drafter=options.drafter, attention="dense"
        )
        self.iterative = Iterative(k=options.k)
        if model in MODELS:
            loaded = load_model(EMBEDDED, "float32", "cpu", MAX_LENGTH)
            self.layout: PromptLayout = ReaderLayout(loaded.tokenizer)
            if model != EMBEDDED:
                random = random_llama(MAX_LENGTH, vocabulary=len(loaded.tokenizer))
                loaded = prepare(model, random, loaded.tokenizer, MAX_LENGTH)
        else:
            loaded = load_model(model, "auto", "cpu", MAX_LENGTH)
            self.layout = layout_for(loaded.name, loaded.tokenizer, parameters=loaded.num_parameters)
        self.engine = build(loaded, 0, kv_memory=256 << 20, page_size=PAGE_SIZE, prefix_cache=True)
        self._experiences = Experiences()  # as a service keeps them from answer to answer

    async def answer(self, question: str, retriever: Retriever, way: Way, turn: int = 0) -> Record:
        """One question, from an empty prefix cache and with the experience of this way and turn."""
        self.engine.run(lambda engine: engine.blocks.release(engine.blocks.allocate(engine.blocks.num_pages))).result()
        asked = Question(question=question, mode=self.mode, iterative=self.iterative)
        query = QueryText(question, query_tokens(asked), self.engine.engine.tokenizer)
        writer = WRITERS[asked.mode](asked, "local", self.params, self.base, self.layout, self.engine, query)
        experience = self._experiences.of((way.name, turn))
        loop = IterativeRetrieval(retriever, writer.write, query([]), way.options, experience)
        began = time.perf_counter()
        await loop.begin()
        async for _ in loop.speculative() if way.speculate else loop.sequential():
            pass
        seconds = time.perf_counter() - began
        reused = writer.reused_tokens / max(1, writer.prompt_tokens)
        text = self.engine.engine.tokenizer.decode(loop.tokens, skip_special_tokens=True)
        return Record(seconds, loop.tokens, loop.figures() | {"reused_share": reused}, text)


@dataclass
class Row:
    """The figures of one model and retriever, question by question.

    Attributes:
        seconds: by way, a question each; the sweep may have fewer.
        figures: by way, those of the loop.
        quality: of each question of a dataset, by name, what its answer is worth.
        different: question and way whose tokens were not those of the sequential loop.
    """

    model: str
    retriever: str
    prefetch: int
    tokens: int
    rounds: int = 1
    seconds: dict[str, list[float]] = field(default_factory=dict)
    figures: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    mode: str = "iterative"
    quality: list[dict[str, float]] = field(default_factory=list)
    different: list[str] = field(default_factory=list)

    @property
    def done(self) -> int:
        return len(self.seconds.get("sequential", []))

    def add(self, question: str, *rounds: dict[str, Record]) -> None:
        """Each way's fastest of the rounds; the tokens of all are compared."""
        expected = rounds[0]["sequential"].tokens
        for name in rounds[0]:
            fastest = min((records[name] for records in rounds), key=lambda record: record.seconds)
            self.seconds.setdefault(name, []).append(fastest.seconds)
            self.figures.setdefault(name, []).append(fastest.figures)
            if any(records[name].tokens != expected for records in rounds):
                self.different.append(f"{name}: {question}")

    def summary(self) -> dict[str, Any]:
        """Medians over questions; a speed-up is the median of the questions' own."""
        plain = self.figures["sequential"]
        share = median(f["retrieval_share"] for f in plain)
        ceiling = 1 / (1 - share)
        speed = {name: self._speed_up(name) for name in self.seconds if name != "sequential"}
        swept = [name for name in speed if name.startswith("s")]
        sweep_size = min((len(self.seconds[name]) for name in swept), default=0)
        target = TARGETS.get(self.retriever)
        wanted = OF_CEILING * ceiling if target is None or target > ceiling else target
        return {
            "model": self.model,
            "retriever": self.retriever,
            "mode": self.mode,
            **{
                name: sum(one[name] for one in self.quality) / len(self.quality)
                for name in (QUALITY if self.quality else ())
            },
            "questions": self.done,
            "prefetch": self.prefetch,
            "tokens": self.tokens,
            "rounds": self.rounds,
            "same_token_ids": not self.different,
            "retrieval_share": share,
            "amdahl_ceiling": ceiling,
            "speedup": speed["os3"],
            "share_of_ceiling": speed["os3"] / ceiling,
            "target": target,
            "wanted": wanted,
            "reached": speed["os3"] >= wanted,
            "speedups": speed,
            "os3_of_best_fixed": self._beside_os3(swept, sweep_size, sum) if swept else None,
            "os3_of_best_fixed_median": self._beside_os3(swept, sweep_size) if swept else None,
            "waiting_of_overlapping": self._beside_os3(["os3_overlap"], sweep_size) if swept else None,
            "sweep_questions": sweep_size,
            "sequential_ms_per_stride": median(f["total_ms"] / f["strides"] for f in plain),
            "search_ms": median(f["search_ms"] / f["searches"] for f in plain),
            **{name: self._medians(name) for name in speed if name.startswith("os3")},
        }

    def _speed_up(self, name: str) -> float:
        pairs = zip(self.seconds["sequential"], self.seconds[name], strict=False)  # the sweep has fewer
        return median(plain / theirs for plain, theirs in pairs)

    def _beside_os3(self, others: Sequence[str], count: int, of: Callable[[list[float]], float] = median) -> float:
        """OS³'s speed as a share of the best of the others', on the questions of the sweep.

        By their sum, since that is what OS³ minimises: a long window gains a little on most questions and loses much on
        a few, which a median does not see.
        """
        best = min(of(self.seconds[name][:count]) for name in others)
        return best / of(self.seconds["os3"][:count])

    def _medians(self, name: str) -> dict[str, float]:
        known = (
            *("acceptance", "a_ms", "b_ms", "gamma", "mean_stride", "strides", "strides_written", "searches"),
            "reused_share",
        )
        rows = self.figures[name]
        seen = {key: [f[key] for f in rows if f[key] is not None] for key in known}
        return {key: median(values) for key, values in seen.items() if values}


def make_retriever(name: str, base: KnowledgeBase, home: Path) -> Retriever:
    """The retriever of that name; indexes that take long to build are kept in ``home``."""
    count = len(base.texts)
    if name == "bm25":
        folder = home / f"bm25-{count}"
        if not folder.is_dir():
            folder.mkdir(parents=True)
            SparseIndex.build([terms(text) for text in base.texts]).save(folder)
        return SparseRetriever(SparseIndex.load(folder))
    embedder = SentenceEmbedder()
    encoding: Batcher[str, np.ndarray] = Batcher(lambda texts: list(embedder.encode_queries(texts)))
    index = _dense_index("hnsw" if name == "hnsw" else "flat", base, home)

    def encode(texts: Sequence[str]) -> np.ndarray:
        return np.stack([encoding(text) for text in texts])

    return _library_retriever(index, encode) if name == "exact" else DenseRetriever(index, encode)


def _library_retriever(index: DenseIndex, encode: Encode) -> Retriever:
    """A library's search in mode dense, over a generation in memory of one document."""
    count = len(index.ids)
    generation = Generation(
        1, Manifest(1, 0, count, "", "", "", None, {}), index.ids, np.zeros(count, dtype=np.int32), [("passages", 1)]
    )
    generation.dense, generation.sparse = index, SparseIndex.build([["none"]])
    snapshot = Snapshot.of(generation, 0)
    scope = snapshot.scope("all", lambda: {"passages"})
    return SnapshotRetriever(snapshot, scope, "dense", encode, lambda text: (text, 0), lambda text: AS_IT_IS)


def _dense_index(name: str, base: KnowledgeBase, home: Path) -> DenseIndex:
    factory = {"flat": "IDMap2,Flat", "hnsw": "IDMap2,HNSW32"}[name]
    ids = np.arange(len(base.texts), dtype=np.int64)
    path = home / f"{name}-{len(ids)}.faiss"
    if name == "flat" or not path.is_file():
        built = DenseIndex.build(ids, np.ascontiguousarray(base.vectors), factory)
        if name == "flat":
            return built
        with path.open("wb") as file:
            built.write(file.write)
    return DenseIndex.read(path)


def read_questions(path: Path | None, base: KnowledgeBase, count: int) -> list[str]:
    """``count`` questions: of a file of JSON lines (``question``, or the first of ``turns``), else about passages.

    Raises:
        EvalError: the file has too few.
    """
    if path is None:
        rows = np.random.default_rng(0).choice(len(base.texts), size=count, replace=False)
        return [f"What is said about {' '.join(base.texts[row].split()[:12])}?" for row in rows]
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    chosen = [line for line in lines if line.get("category", "qa") == "qa"]
    found = [line.get("question") or (line.get("turns") or [""])[0] for line in chosen]
    if len(found) < count:
        raise EvalError(f"{path} has {len(found)} questions, {count} are wanted", hint="Ask for fewer --questions.")
    return found[:count]


@dataclass(frozen=True)
class Asked:
    """A question, and where it is of a dataset what answers it."""

    question: str
    item: Item | None = None


def items_of(data: Dataset, count: int) -> list[Asked]:
    """Questions with answers, drawn from all over the dataset.

    Raises:
        EvalError: it has too few.
    """
    answered = [item for item in data.items if item.answers]
    if len(answered) < count:
        raise EvalError(
            f"{data.name} has {len(answered)} questions, {count} are wanted", hint="Ask for fewer --questions."
        )
    rows = np.sort(np.random.default_rng(0).choice(len(answered), size=count, replace=False))
    return [Asked(answered[row].question, answered[row]) for row in rows]


QUALITY = ("exact_match", "f1", "holds")


def worth(answer: str, item: Item) -> dict[str, float]:
    """Exact match and F1 by SQuAD's rule, and whether the answer holds a right one."""
    accepted = [" ".join(parts) for parts in item.answers]
    measures = (
        scoring.exact_match(answer, accepted, item.language),
        scoring.best_f1(answer, accepted, item.language),
        float(scoring.holds(answer, item.answers)),
    )
    return dict(zip(QUALITY, measures, strict=True))


@dataclass(frozen=True, kw_only=True)
class Options(BenchOptions):
    """Iterative retrieval: sequential against speculative, over a large knowledge base."""

    passages: Annotated[int, Option(min=1000, help="Passages of the knowledge base.")] = 200_000
    text: Texts = ()
    questions: Annotated[int, Option(min=1, help="Questions of each row.")] = 30
    questions_file: Annotated[Path | None, Option(help="JSON lines with `question` or `turns`.")] = None
    dataset: Annotated[
        Path | None,
        Option(help="A file of SQuAD's format: its paragraphs are the passages, its answers the right ones."),
    ] = None
    mode: Annotated[tuple[str, ...], Option(help=f"Of {', '.join(STEPWISE)}; may be repeated.")] = STEPWISE[:1]
    tokens: Annotated[int, Option(min=8, help="Tokens generated for each.")] = 64
    k: Annotated[int, Option("--k", min=1, help="Tokens between searches.")] = 4
    model: Annotated[
        tuple[str, ...], Option(help="embedded, llama-27m, smollm2, a folder or a file; may be repeated.")
    ] = MODELS
    retriever: Annotated[tuple[str, ...], Option(help="exact, flat, hnsw or bm25; may be repeated.")] = tuple(TARGETS)
    drafter: Annotated[str, Option(help="Drafter within a stride, on both sides.")] = "prompt_lookup"
    sweep: Annotated[int, Option(min=0, help="Questions on which fixed strides are tried.")] = 6
    rounds: Annotated[int, Option(min=1, help="Times that a question is answered; the fastest counts.")] = 1
    minutes: Annotated[float, Option(min=0.1, help="Begin no question after so long.")] = 1e6
    resume: Annotated[bool, Option("--resume", help="Go on with the result file.")] = False


def measure(options: Options) -> Figures:
    """The command: the rows that are named, or what the file lacks of them."""
    earlier = Result("ralm", options.output).earlier() if options.resume else None
    return run(options, earlier["measured"] if earlier else None)


def run(options: Options, earlier: dict[str, Any] | None = None) -> Figures:
    """Measure the rows that are named until the time is up; ``earlier`` is the ``measured`` of an earlier result.

    Raises:
        EvalError: there is no such model or retriever; an earlier row has other tokens or rounds.
    """
    _check("mode", options.mode, STEPWISE)
    _check("retriever", options.retriever, tuple(TARGETS))
    deadline = time.monotonic() + 60 * options.minutes
    home = cache_folder("ralm")
    if options.dataset is not None:
        data = dataset.load(options.dataset)
        home = cache_folder(f"ralm-{data.name}")
        home.mkdir(parents=True, exist_ok=True)
        texts = [str(text) for text in data.documents.values()]
        base = KnowledgeBase(texts, embed(texts, len(texts), home))
        asked = items_of(data, options.questions)
    else:
        base = knowledge_base(options.passages, options.text, home)
        asked = [Asked(question) for question in read_questions(options.questions_file, base, options.questions)]
    rows = {name: Row(**row) for name, row in (earlier or {}).items()}
    for retriever, model, mode in product(options.retriever, options.model, options.mode):
        new = Row(model, retriever, PREFETCH[retriever], options.tokens, options.rounds, mode=mode)
        row = rows.setdefault("/".join([model, retriever, *([mode] if mode != STEPWISE[0] else [])]), new)
        if (row.tokens, row.rounds) != (options.tokens, options.rounds):
            raise EvalError(
                f"the row {model}/{retriever} has {row.tokens} tokens and {row.rounds} rounds",
                hint="Resume it with as many.",
            )
        if row.done >= options.questions or time.monotonic() > deadline:
            continue
        answering = Bench(model, mode, base, options)
        with answering.engine:
            found = make_retriever(retriever, base, home)
            asyncio.run(_measure(answering, row, found, asked, options.sweep, deadline))
    return {
        **options.told("passages", "k", "drafter"),
        "dataset": None if options.dataset is None else options.dataset.name,
        "passage_words_mean": sum(len(t.split()) for t in base.texts) / len(base.texts),
        "page_size": PAGE_SIZE,
        "rows": {name: row.summary() for name, row in rows.items() if row.done},
        "measured": {name: vars(row) for name, row in rows.items()},
    }


def table(figures: Figures) -> list[dict[str, Any]]:
    """A line a row, for people."""
    return list(figures["rows"].values())


def _check(what: str, given: Sequence[str], known: Sequence[str]) -> None:
    for name in given:
        if name not in known:
            raise EvalError(f"there is no {what} {name!r}", hint=f"Choose of {', '.join(known)}.", param=what)


async def _measure(
    answering: Bench, row: Row, retriever: Retriever, questions: Sequence[Asked], sweep: int, deadline: float
) -> None:
    for way in ways(row.prefetch, sweep=False):  # compiles and warms what the first question would pay for
        await answering.answer("What is a warm-up?", retriever, way, turn=-1)
    for number, asked in list(enumerate(questions))[row.done :]:
        if time.monotonic() > deadline:
            return
        found = ways(row.prefetch, sweep=number < sweep)
        turned = found[number % len(found) :] + found[: number % len(found)]
        orders = [turned if turn % 2 == 0 else turned[::-1] for turn in range(row.rounds)]
        rounds = [
            {way.name: await answering.answer(asked.question, retriever, way, turn) for way in order}
            for turn, order in enumerate(orders)
        ]
        row.add(asked.question, *rounds)
        if asked.item is not None:
            row.quality.append(worth(rounds[0]["sequential"].text, asked.item))


command = bench(Options, measure, "ralm", table=table)

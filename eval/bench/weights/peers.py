"""Folio and its peers on the same weights and the same token ids: one checkpoint in float32, or one GGUF file.

Each engine runs in a process of its own, so that memory is its own. On a checkpoint every engine must give the greedy
tokens of transformers; the count of agreeing tokens is in the figures. On a GGUF file each runs as it runs best, in
numbers of its own choice, and the perplexity of a text tells what it pays for them. Questions over a folder of text are
answered by each with as many tokens as Folio's own answer has, plainly decoded; `quoting` is the speed over those that
this answers by one passage of its prompt, for the most part.
"""

from __future__ import annotations

import json
import math
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, median, stdev
from typing import Annotated, Any

import structlog
from typer import Option

from eval.bench.base import Cells, Figures, NewTokens, Repeats, Result, Row, ThreadedOptions, bench
from eval.bench.beside_transformers import random_llama
from eval.bench.drafting.prompts import questions, quoted
from eval.bench.runner import HEADROOM, agreeing, random_ids
from eval.errors import EvalError
from eval.figures import command_line, git_sha
from eval.harness.engines import Point
from eval.options import Separated
from eval.peers.client import GGUF_PEERS, PEERS, Peer, Timing, Worker
from eval.peers.convert import converted
from service.engine.loading.sources import find_model
from service.errors import FolioError
from service.models import layout_for

log = structlog.get_logger(__name__)

REFERENCE = "transformers"
CHECK_PROMPT = 512
CHECK_TOKENS = 32
LONGEST = 131_072  # tokens
BATCH_PROMPT = 512
PLAIN = "folio"
POINT = "folio:"
"""Before any point of Folio's own, such as dense+auto (a policy and a drafter)."""
ANSWER_TOKENS = 96
QUOTED = 0.5  # of an answer


def decided_llama(folder: Path) -> Path:
    """`random_llama` with logits far enough apart that engines can agree on tokens, and no end; returns its folder."""
    changes: dict[str, Any] = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    changes |= {"initializer_range": 0.05, "tie_word_embeddings": False}
    random_llama(LONGEST, **changes).save_pretrained(folder)
    return folder


@dataclass(frozen=True, kw_only=True)
class Options(ThreadedOptions):
    """Time Folio, transformers, OpenVINO GenAI, llama.cpp and CTranslate2 on the same weights.

    What the file has of an engine is kept: a table can be made in pieces.
    """

    lengths: Annotated[
        tuple[int, ...], Separated(), Option(help="Prompt lengths; by default 1K to 16K, of a GGUF file 16 to 16K.")
    ] = ()
    engines: Annotated[
        tuple[str, ...],
        Separated(),
        Option(help=f"Engines, by commas; {POINT}POINT is one of Folio's own; by default all that there are."),
    ] = ()
    model: Annotated[Path | None, Option(help="A Llama checkpoint; default: random weights.")] = None
    gguf: Annotated[Path | None, Option(help="A GGUF file, on which each engine runs as it runs best.")] = None
    batches: Annotated[
        tuple[int, ...], Separated(), Option(help=f"Sequences at a time, behind {BATCH_PROMPT} tokens each.")
    ] = ()
    text: Annotated[Path | None, Option(help="Text whose perplexity is measured, with --gguf.")] = None
    windows: Annotated[int, Option(min=2, help="Windows of the text.")] = 8
    window: Annotated[int, Option(min=16, help="Tokens of each.")] = 512
    questions: Annotated[int, Option(min=0, help="Questions that are answered, with --gguf.")] = 0
    question_tokens: Annotated[int, Option(min=256, help="Tokens of their prompts, about.")] = 2048
    corpus: Annotated[Path, Option(help="Folder of text that they are about.")] = Path("../shared/corpus")
    new_tokens: NewTokens = 32
    repeats: Repeats = 3
    threads: Annotated[int, Option(min=1, help="CPU threads of every engine.")] = 2
    limit: Annotated[float | None, Option(help="Begin nothing new after so many seconds.")] = None
    fresh: Annotated[bool, Option(help="Forget what the file has.")] = False
    name: Annotated[str, Option(help="Of the file in eval/results.")] = "peers"

    @property
    def peers(self) -> dict[str, Peer]:
        """Those that were asked for.

        Raises:
            EvalError: there is no engine of that name.
        """
        known = GGUF_PEERS if self.gguf else PEERS
        points = {name: Point.parse(name.removeprefix(POINT)) for name in self.engines if name.startswith(POINT)}
        known = known | {name: replace(known[PLAIN], name=name, option=point.name) for name, point in points.items()}
        if unknown := [name for name in self.engines if name not in known]:
            raise EvalError(f"unknown engine {unknown[0]!r}", hint=f"There are {', '.join(known)}.", param="engines")
        return {name: known[name] for name in self.engines or known}

    @property
    def prompts(self) -> tuple[int, ...]:
        return self.lengths or ((16, 512, 2048, 8192, 16384) if self.gguf else (1024, 4096, 16384))


@dataclass(frozen=True)
class Material:
    """What the engines are given.

    Attributes:
        model: a checkpoint's folder, or a GGUF file.
        vocabulary: ids that it knows. context: tokens that it reads.
        windows: of a text, ids.
        questions: prompts. ends: the ids that end an answer.
    """

    model: Path
    vocabulary: int
    context: int
    windows: Sequence[Sequence[int]] = ()
    questions: Sequence[Sequence[int]] = ()
    ends: frozenset[int] = frozenset()


def measure(options: Options) -> Figures | None:
    """The command: what the file has, and what is missing of it; None where the time was up before."""
    result = Result(options.name, options.output)
    known = None if options.fresh else result.earlier()
    return run(options, known, result.save)


def run(options: Options, known: Figures | None = None, save: Any = lambda figures: None) -> Figures | None:
    """Figures of every engine; an engine that cannot be set up or fails has its error in its place.

    Raises:
        EvalError: there is no engine of that name, or no such model, or it is another than that of ``known``.
    """
    peers = options.peers
    ends = time.perf_counter() + (options.limit or math.inf)
    with _material(options) as material:
        about = _about(options)
        tables: dict[str, list[Row]] = {name: [] for name in (*_Tables.NAMES, "failed")}
        figures: Figures = {**about, **tables, **(known or {})}
        if unlike := [name for name in about if figures.get(name) != about[name]]:
            raise EvalError(
                f"the file was made with {unlike[0]} {figures.get(unlike[0])}, not {about[unlike[0]]}",
                hint="Give another --output, or --fresh.",
            )
        kept = _Tables(figures, lambda: save(figures))
        expected = _expected(material, options) if options.gguf is None else None
        whole = True
        for peer in peers.values():
            if time.perf_counter() > ends:
                return None
            figures["failed"] = [row for row in figures["failed"] if row["engine"] != peer.name]
            try:
                whole &= _Measurement(peer, material, options, kept, ends).run(expected)
            except FolioError as error:
                log.warning("peer failed", peer=peer.name, error=error.detail)
                figures["failed"].append({"engine": peer.name, "error": error.detail})
                save(figures)
    if figures["answers"]:
        figures["quoting"] = _quoting(figures["answers"])
    return figures if whole else None


def _about(options: Options) -> Figures:
    one = options.gguf or options.model
    told = options.told("threads", "new_tokens", "repeats", "windows", "window")
    text = options.text.name if options.text else None
    return {"model": one.name if one else "random Llama, 27 M parameters, fp32", **told, "text": text}


class _Tables:
    """The figures as tables that are saved with each new row."""

    NAMES = ("engines", "lengths", "batches", "perplexity", "answers")

    def __init__(self, figures: Figures, keep: Any) -> None:
        self.engines, self.lengths, self.batches, self.perplexity, self.answers = (
            Cells(figures[name], keep) for name in self.NAMES
        )


class _Measurement:
    """What is missing of one engine, in one process of it."""

    def __init__(self, peer: Peer, material: Material, options: Options, tables: _Tables, ends: float) -> None:
        self._peer, self._material, self._options, self._tables = peer, material, options, tables
        self._ends = ends
        self._lengths = [n for n in options.prompts if n + options.new_tokens + HEADROOM <= material.context]
        self._stamp = {"command": command_line(), "git": git_sha()}

    def run(self, expected: Sequence[int] | None) -> bool:
        """Measure it, until the time is up; whether all is there then."""
        if not any(True for _ in self._missing()):
            return True
        peer, options, material = self._peer, self._options, self._material
        model = converted(material.model, peer.worker, peer.weights)
        prompts = [*self._lengths, CHECK_PROMPT, BATCH_PROMPT, *map(len, material.questions)]
        longest = max(prompts) + max(options.new_tokens, CHECK_TOKENS, ANSWER_TOKENS) + HEADROOM
        with Worker(peer) as worker:
            loading = worker.load(
                model,
                threads=options.threads,
                context=min(longest, material.context),
                sequences=max(options.batches, default=1),
            )
            said = worker.generate(random_ids(CHECK_PROMPT, 0, material.vocabulary), CHECK_TOKENS)
            if not self._tables.engines.at(engine=peer.name):
                row: Row = {"engine": peer.name, "load_s": loading.load_s, "loaded_rss_mb": loading.rss_mb}
                if expected is not None:
                    row |= {"agreeing_tokens": agreeing(said.ids, expected), "checked_tokens": len(expected)}
                self._tables.engines.add(row | {"about": loading.about} | self._stamp)
            for table, place in self._missing():
                if time.perf_counter() > self._ends:
                    return False
                table.add({"engine": peer.name, **place, **self._figures(worker, place), **self._stamp})
        return True

    def _missing(self) -> Iterator[tuple[Cells, Row]]:
        """Tables and the places in them that have no row of this engine."""
        wanted: list[tuple[Cells, Row]] = [(self._tables.lengths, {"tokens": length}) for length in self._lengths]
        wanted += [(self._tables.batches, {"sequences": batch}) for batch in self._options.batches]
        if self._material.windows:
            wanted.append((self._tables.perplexity, {}))
        wanted += [(self._tables.answers, {"question": number}) for number in range(len(self._material.questions))]
        return (one for one in wanted if not one[0].at(engine=self._peer.name, **one[1]))

    def _figures(self, worker: Worker, place: Row) -> Row:
        options, vocabulary = self._options, self._material.vocabulary
        if "tokens" in place:
            prompts = [random_ids(place["tokens"], 1 + i, vocabulary) for i in range(options.repeats)]
            return _of_length(place["tokens"], [worker.generate(prompt, options.new_tokens) for prompt in prompts])
        if "sequences" in place:
            prompts = [random_ids(BATCH_PROMPT, 1 + i, vocabulary) for i in range(place["sequences"])]
            short, long = (worker.batch(prompts, count)[1] for count in (2, 2 + options.new_tokens))
            return {"decode_tokens_per_s": len(prompts) * options.new_tokens / (long - short), "total_s": long}
        if "question" in place:
            return self._answer(worker, place["question"])
        losses = [worker.score(list(window)) for window in self._material.windows]
        return {
            "perplexity": math.exp(mean(losses)),
            "loss": mean(losses),
            "loss_se": stdev(losses) / math.sqrt(len(losses)),
        }

    def _answer(self, worker: Worker, question: int) -> Row:
        """The speed of one answer, which is as long as that of `PLAIN`."""
        ids = list(self._material.questions[question])
        if self._peer.name == PLAIN:
            said = worker.generate(ids, ANSWER_TOKENS).ids
            length = next((i for i, token in enumerate(said) if token in self._material.ends), len(said))
            expected = said[: max(length, 2)]
            row: Row = {"quoted": quoted(ids, expected), "ids": list(expected)}
        else:
            plain = self._tables.answers.at(engine=PLAIN, question=question)
            if not plain:
                raise EvalError(f"{PLAIN} has not answered yet, whose lengths count", hint=f"Put {PLAIN} first.")
            expected, row = plain[0]["ids"], {}
        timing = worker.generate(ids, len(expected))
        times = {"ttft_s": timing.ttft_s, "decode_s": timing.total_s - timing.ttft_s}
        same = agreeing(timing.ids, expected)
        return {"context": len(ids), "tokens": len(expected), **times, "agreeing_tokens": same, **row}


def _of_length(tokens: int, timings: list[Timing]) -> Row:
    decode = [timing.decode_s for timing in timings if timing.decode_s is not None]
    ttft_s = median(timing.ttft_s for timing in timings)
    return {
        "ttft_s": ttft_s,
        "prefill_tokens_per_s": tokens / ttft_s,
        "decode_ms": 1000 * median(decode) if decode else None,
        "total_s": median(timing.total_s for timing in timings),
        "rss_mb": max(timing.rss_mb for timing in timings),
    }


def _quoting(answers: list[Row]) -> list[Row]:
    """Tokens a second behind the first, over the questions that `PLAIN` answers by quoting."""
    chosen = {row["question"] for row in answers if row.get("quoted", 0) >= QUOTED}
    own: dict[str, list[Row]] = {row["engine"]: [] for row in answers}
    for row in answers:
        if row["question"] in chosen:
            own[row["engine"]].append(row)
    return [
        {
            "engine": name,
            "questions": len(rows),
            "tokens": sum(row["tokens"] for row in rows),
            "agreeing_tokens": sum(row["agreeing_tokens"] for row in rows),
            "tokens_per_s": sum(row["tokens"] - 1 for row in rows) / sum(row["decode_s"] for row in rows),
        }
        for name, rows in own.items()
        if rows
    ]


@contextmanager
def _material(options: Options) -> Iterator[Material]:
    if options.gguf is not None:
        source = find_model(str(options.gguf))
        windows: list[list[int]] = []
        if options.text is not None:
            ids = source.tokenizer()(options.text.read_text(encoding="utf-8")).input_ids
            starts = range(0, options.windows * options.window, options.window)
            windows = [ids[start : start + options.window] for start in starts]
            if len(windows[-1]) < options.window:
                raise EvalError(f"{options.text.name} has {len(ids)} tokens only", hint="Ask for fewer windows.")
        config = source.config
        material = Material(options.gguf, config.vocab_size, config.max_position_embeddings, windows)
        if options.questions:
            layout = layout_for(str(options.gguf), source.tokenizer(), parameters=source.num_parameters)
            asked = questions(layout, options.question_tokens, options.questions, options.corpus)
            ends: Any = source.generation().eos_token_id or ()
            ends = frozenset([ends] if isinstance(ends, int) else ends)
            material = replace(material, questions=asked, ends=ends)
        yield material
        return
    with tempfile.TemporaryDirectory() as made:
        folder = options.model or decided_llama(Path(made))
        try:
            config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            vocabulary, context = int(config["vocab_size"]), int(config["max_position_embeddings"])
        except (OSError, ValueError, KeyError) as error:
            raise EvalError(f"{folder} holds no model: {error}", hint="Give a folder of a Llama checkpoint.") from error
        yield Material(folder, vocabulary, context)


def _expected(material: Material, options: Options) -> Sequence[int]:
    """transformers' greedy tokens."""
    with Worker(PEERS[REFERENCE]) as worker:
        worker.load(material.model, threads=options.threads, context=CHECK_PROMPT + CHECK_TOKENS)
        return worker.generate(random_ids(CHECK_PROMPT, 0, material.vocabulary), CHECK_TOKENS).ids


command = bench(Options, measure, lambda options, figures: options.name)

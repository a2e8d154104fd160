"""Folio and its peers on the same weights and the same token ids: one checkpoint in float32, or one GGUF file.

Each engine runs in a process of its own, so that memory is its own. On a checkpoint every engine must give the greedy
tokens of transformers; the count of agreeing tokens is in the figures. On a GGUF file each runs as it runs best, in
numbers of its own choice, and the perplexity of a text tells what it pays for them.
"""

from __future__ import annotations

import json
import math
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median, stdev
from typing import Annotated, Any

import structlog
from typer import Option

from eval.bench.base import Cells, Figures, NewTokens, Repeats, Result, Row, ThreadedOptions, bench
from eval.bench.beside_transformers import random_llama
from eval.bench.runner import HEADROOM, agreeing, random_ids
from eval.errors import EvalError
from eval.figures import command_line, git_sha
from eval.options import Separated
from eval.peers.client import GGUF_PEERS, PEERS, Peer, Timing, Worker
from eval.peers.convert import converted
from service.engine.loading.sources import find_model
from service.errors import FolioError

log = structlog.get_logger(__name__)

REFERENCE = "transformers"
CHECK_PROMPT = 512
CHECK_TOKENS = 32
LONGEST = 131_072  # tokens
BATCH_PROMPT = 512


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
        tuple[str, ...], Separated(), Option(help="Engines, separated by commas; by default all that there are.")
    ] = ()
    model: Annotated[Path | None, Option(help="A Llama checkpoint; default: random weights.")] = None
    gguf: Annotated[Path | None, Option(help="A GGUF file, on which each engine runs as it runs best.")] = None
    batches: Annotated[
        tuple[int, ...], Separated(), Option(help=f"Sequences at a time, behind {BATCH_PROMPT} tokens each.")
    ] = ()
    text: Annotated[Path | None, Option(help="Text whose perplexity is measured, with --gguf.")] = None
    windows: Annotated[int, Option(min=2, help="Windows of the text.")] = 8
    window: Annotated[int, Option(min=16, help="Tokens of each.")] = 512
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
    """

    model: Path
    vocabulary: int
    context: int
    windows: Sequence[Sequence[int]] = ()


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
        figures: Figures = known or {
            **about,
            "engines": [],
            "lengths": [],
            "batches": [],
            "perplexity": [],
            "failed": [],
        }
        if unlike := [name for name in about if figures.get(name) != about[name]]:
            raise EvalError(
                f"the file was made with {unlike[0]} {figures.get(unlike[0])}, not {about[unlike[0]]}",
                hint="Give another --output, or --fresh.",
            )
        tables = _Tables(figures, lambda: save(figures))
        expected = _expected(material, options) if options.gguf is None else None
        whole = True
        for peer in peers.values():
            if time.perf_counter() > ends:
                return None
            figures["failed"] = [row for row in figures["failed"] if row["engine"] != peer.name]
            try:
                whole &= _Measurement(peer, material, options, tables, ends).run(expected)
            except FolioError as error:
                log.warning("peer failed", peer=peer.name, error=error.detail)
                figures["failed"].append({"engine": peer.name, "error": error.detail})
                save(figures)
    return figures if whole else None


def _about(options: Options) -> Figures:
    one = options.gguf or options.model
    told = options.told("threads", "new_tokens", "repeats", "windows", "window")
    text = options.text.name if options.text else None
    return {"model": one.name if one else "random Llama, 27 M parameters, fp32", **told, "text": text}


class _Tables:
    """The figures as tables that are saved with each new row."""

    def __init__(self, figures: Figures, keep: Any) -> None:
        self.engines, self.lengths, self.batches, self.perplexity = (
            Cells(figures[name], keep) for name in ("engines", "lengths", "batches", "perplexity")
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
        longest = max([*self._lengths, CHECK_PROMPT, BATCH_PROMPT]) + max(options.new_tokens, CHECK_TOKENS) + HEADROOM
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
        losses = [worker.score(list(window)) for window in self._material.windows]
        return {
            "perplexity": math.exp(mean(losses)),
            "loss": mean(losses),
            "loss_se": stdev(losses) / math.sqrt(len(losses)),
        }


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
        yield Material(options.gguf, source.config.vocab_size, source.config.max_position_embeddings, windows)
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

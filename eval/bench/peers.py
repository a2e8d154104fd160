"""Folio and its peers on the same weights and the same token ids: one table a length.

Before anything is timed every engine must agree with transformers on greedy tokens; the count of agreeing
tokens is in the figures. Each engine runs in a process of its own, so that memory is its own.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import structlog
from typer import Option

from eval.bench.base import BenchOptions, Figures, Lengths, NewTokens, Repeats, Row, bench
from eval.bench.beside_transformers import random_llama
from eval.bench.runner import HEADROOM, agreeing, random_ids
from eval.errors import EvalError
from eval.options import Separated
from eval.peers.client import PEERS, Peer, Timing, Worker
from eval.peers.convert import converted
from service.errors import FolioError

log = structlog.get_logger(__name__)

REFERENCE = "transformers"
CHECK_PROMPT = 512
CHECK_TOKENS = 32
LONGEST = 131_072  # tokens


def decided_llama(folder: Path) -> Path:
    """`random_llama` with logits far enough apart that engines can agree on tokens, and no end; returns its folder."""
    changes: dict[str, Any] = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    changes |= {"initializer_range": 0.05, "tie_word_embeddings": False}
    random_llama(LONGEST, **changes).save_pretrained(folder)
    return folder


@dataclass(frozen=True, kw_only=True)
class Options(BenchOptions):
    """Time Folio, transformers, OpenVINO GenAI, llama.cpp and CTranslate2 on the same weights."""

    lengths: Lengths = (1024, 4096, 16384)
    engines: Annotated[tuple[str, ...], Separated(), Option(help="Engines, separated by commas.")] = tuple(PEERS)
    model: Annotated[Path | None, Option(help="A Llama checkpoint; default: random weights.")] = None
    new_tokens: NewTokens = 32
    repeats: Repeats = 3
    threads: Annotated[int, Option(min=1, help="CPU threads of every engine.")] = 2


def run(options: Options) -> Figures:
    """Figures of every engine at every length; an engine that cannot be set up or fails has its error in its place.

    Raises:
        EvalError: there is no engine of that name, or no model in the folder.
    """
    if unknown := [name for name in options.engines if name not in PEERS]:
        raise EvalError(f"unknown engine {unknown[0]!r}", hint=f"There are {', '.join(PEERS)}.", param="engines")
    with tempfile.TemporaryDirectory() as made:
        folder = options.model or decided_llama(Path(made))
        vocab_size = _vocab_size(folder)
        prompt = random_ids(CHECK_PROMPT, 0, vocab_size)
        with Worker(PEERS[REFERENCE]) as worker:
            model = converted(folder, PEERS[REFERENCE].worker)
            worker.load(model, threads=options.threads, context=CHECK_PROMPT + CHECK_TOKENS)
            expected = worker.generate(prompt, CHECK_TOKENS).ids
        engines: dict[str, Any] = {}
        for name in options.engines:
            try:
                engines[name] = _measure(PEERS[name], folder, vocab_size, expected, options)
            except FolioError as error:
                log.warning("peer failed", peer=name, error=error.detail)
                engines[name] = {"error": error.detail}
    return {
        "model": options.model.name if options.model else "random Llama, 27 M parameters, fp32",
        **options.told("threads", "new_tokens", "repeats", "lengths"),
        "engines": engines,
    }


def _measure(peer: Peer, model: Path, vocab_size: int, expected: Sequence[int], options: Options) -> Row:
    """Medians of the timed generations at each length, after one short generation to warm up and to check the ids."""
    own = converted(model, peer.worker)
    by_length = {}
    with Worker(peer) as worker:
        longest = max(max(options.lengths) + options.new_tokens, CHECK_PROMPT + CHECK_TOKENS)
        worker.load(own, threads=options.threads, context=longest + HEADROOM)
        said = worker.generate(random_ids(CHECK_PROMPT, 0, vocab_size), CHECK_TOKENS).ids
        for length in options.lengths:
            prompts = [random_ids(length, 1 + i, vocab_size) for i in range(options.repeats)]
            by_length[length] = _figures([worker.generate(prompt, options.new_tokens) for prompt in prompts])
    return {"agreeing_tokens": agreeing(said, expected), "checked_tokens": len(expected), "lengths": by_length}


def _figures(timings: list[Timing]) -> dict[str, float | None]:
    decode = [timing.decode_s for timing in timings if timing.decode_s is not None]
    return {
        "ttft_s": median(timing.ttft_s for timing in timings),
        "decode_ms": 1000 * median(decode) if decode else None,
        "total_s": median(timing.total_s for timing in timings),
        "rss_mb": max(timing.rss_mb for timing in timings),
    }


def _vocab_size(model: Path) -> int:
    try:
        return int(json.loads((model / "config.json").read_text(encoding="utf-8"))["vocab_size"])
    except (OSError, ValueError, KeyError) as error:
        raise EvalError(f"{model} holds no model: {error}", hint="Give a folder of a Llama checkpoint.") from error


def table(figures: Figures) -> list[Row]:
    """A line a length and engine, for people."""
    rows = []
    for length in figures["lengths"]:
        for name, engine in figures["engines"].items():
            row: Row = {"tokens": length, "engine": name, "error": engine.get("error", "").partition("\n")[0][:60]}
            if not row["error"]:
                row |= {
                    "agrees": f"{engine['agreeing_tokens']}/{engine['checked_tokens']}",
                    **engine["lengths"][length],
                }
            rows.append(row)
    return rows


command = bench(Options, run, "peers", table=table)

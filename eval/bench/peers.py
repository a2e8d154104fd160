"""Folio and its peers on the same weights and the same token ids: one table a length.

Before anything is timed every engine must agree with transformers on greedy tokens; the count of agreeing
tokens is in the figures. Each engine runs in a process of its own, so that memory is its own.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from pathlib import Path
from typing import Annotated, Any

import structlog
import typer

from eval.errors import EvalError
from eval.figures import report_result
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
    from eval.bench._beside_transformers import random_llama

    changes: dict[str, Any] = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    changes |= {"initializer_range": 0.05, "tie_word_embeddings": False}
    random_llama(LONGEST, **changes).save_pretrained(folder)
    return folder


def prompt_ids(length: int, vocab_size: int, seed: int = 0) -> list[int]:
    """Token ids drawn at random, the same for every engine."""
    import numpy as np

    return np.random.default_rng(seed).integers(0, vocab_size, size=length).tolist()


def run(
    model: Path | None, lengths: list[int], names: list[str], *, new_tokens: int, repeats: int, threads: int
) -> dict[str, Any]:
    """Figures of every engine at every length.

    Args:
        model: a Llama checkpoint in transformers' format; None for `decided_llama`.
        names: of `PEERS`; one that cannot be set up or fails is reported with its error, not left out.
        repeats: generations timed at each length; medians are reported, after one short generation to warm up.
    """
    with tempfile.TemporaryDirectory() as made:
        folder = model or decided_llama(Path(made))
        vocab_size = _vocab_size(folder)
        expected = _greedy(PEERS[REFERENCE], folder, prompt_ids(CHECK_PROMPT, vocab_size), threads)
        engines = {}
        for name in names:
            try:
                engines[name] = _measure(
                    PEERS[name], folder, expected, lengths, vocab_size, new_tokens, repeats, threads
                )
            except FolioError as error:
                log.warning("peer failed", peer=name, error=error.detail)
                engines[name] = {"error": error.detail}
    return {
        "model": model.name if model else "random Llama, 27 M parameters, fp32",
        "threads": threads,
        "new_tokens": new_tokens,
        "repeats": repeats,
        "lengths": lengths,
        "engines": engines,
    }


def _measure(
    peer: Peer,
    model: Path,
    expected: tuple[int, ...],
    lengths: list[int],
    vocab_size: int,
    new_tokens: int,
    repeats: int,
    threads: int,
) -> dict[str, Any]:
    own = converted(model, peer.worker)
    by_length = {}
    with Worker(peer) as worker:
        longest = max(max(lengths) + new_tokens, CHECK_PROMPT + CHECK_TOKENS)
        worker.load(own, threads=threads, context=longest + 64)
        said = worker.generate(prompt_ids(CHECK_PROMPT, vocab_size), CHECK_TOKENS).ids
        for length in lengths:
            timings = [worker.generate(prompt_ids(length, vocab_size, seed=1 + i), new_tokens) for i in range(repeats)]
            by_length[length] = _figures(timings)
    return {"agreeing_tokens": _agreeing(said, expected), "checked_tokens": len(expected), "lengths": by_length}


def _greedy(peer: Peer, model: Path, ids: list[int], threads: int) -> tuple[int, ...]:
    with Worker(peer) as worker:
        worker.load(converted(model, peer.worker), threads=threads, context=CHECK_PROMPT + CHECK_TOKENS)
        return worker.generate(ids, CHECK_TOKENS).ids


def _agreeing(a: tuple[int, ...], b: tuple[int, ...]) -> int:
    """Tokens before the first difference."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _figures(timings: list[Timing]) -> dict[str, float | None]:
    decode = [timing.decode_s for timing in timings if timing.decode_s is not None]
    return {
        "ttft_s": statistics.median(timing.ttft_s for timing in timings),
        "decode_ms": 1000 * statistics.median(decode) if decode else None,
        "total_s": statistics.median(timing.total_s for timing in timings),
        "rss_mb": max(timing.rss_mb for timing in timings),
    }


def _vocab_size(model: Path) -> int:
    try:
        return int(json.loads((model / "config.json").read_text(encoding="utf-8"))["vocab_size"])
    except (OSError, ValueError, KeyError) as error:
        raise EvalError(f"{model} holds no model: {error}", hint="Give a folder of a Llama checkpoint.") from error


def _print_tables(figures: dict[str, Any]) -> None:
    for length in figures["lengths"]:
        typer.echo(f"\n{length} tokens")
        typer.echo(f"{'engine':22}{'agrees':>9}{'TTFT s':>9}{'decode ms':>11}{'total s':>9}{'memory MB':>11}")
        for name, engine in figures["engines"].items():
            if "error" in engine:
                typer.echo(f"{name:22}{engine['error'].splitlines()[0][:60]}")
                continue
            row = engine["lengths"][length]
            agrees = f"{engine['agreeing_tokens']}/{engine['checked_tokens']}"
            decode = f"{row['decode_ms']:.1f}" if row["decode_ms"] is not None else "–"
            typer.echo(
                f"{name:22}{agrees:>9}{row['ttft_s']:>9.2f}{decode:>11}{row['total_s']:>9.2f}{row['rss_mb']:>11.0f}"
            )


def command(
    lengths: Annotated[str, typer.Option(help="Prompt lengths, separated by commas.")] = "1024,4096,16384",
    engines: Annotated[str, typer.Option(help="Engines, separated by commas.")] = ",".join(PEERS),
    model: Annotated[Path | None, typer.Option(help="A Llama checkpoint; default: random weights.")] = None,
    new_tokens: Annotated[int, typer.Option(min=2, help="Tokens generated after each prompt.")] = 32,
    repeats: Annotated[int, typer.Option(min=1, help="Timed generations at each length.")] = 3,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of every engine.")] = 2,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
    output: Annotated[Path | None, typer.Option(help="File of the figures; default eval/results/peers.json.")] = None,
) -> None:
    """Time Folio, transformers, OpenVINO GenAI, llama.cpp and CTranslate2 on the same weights."""
    names = engines.split(",")
    unknown = [name for name in names if name not in PEERS]
    if unknown:
        raise EvalError(f"unknown engine {unknown[0]!r}", hint=f"There are {', '.join(PEERS)}.", param="engines")
    try:
        wanted = [int(length) for length in lengths.split(",")]
    except ValueError as error:
        raise EvalError(f"--lengths cannot be {lengths!r}", hint="Write 1024,4096.", param="lengths") from error
    figures = run(model, wanted, names, new_tokens=new_tokens, repeats=repeats, threads=threads)
    if not as_json:
        _print_tables(figures)
    report_result("peers", figures, as_json=as_json, output=output)

"""Decoding speed behind a long context: the engine beside transformers' `generate` (sdpa), in turn, on a random model;
and of the embedded reader behind a text, dense and with pages selected.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Annotated, Any

from typer import Option

from eval.bench.base import Figures, NewTokens, Policies, Repeats, Row, ThreadedOptions, Threads, bench
from eval.bench.beside_transformers import MODEL, compare
from eval.bench.runner import HEADROOM, Timing, agreeing, ask, build, plain, text_ids
from eval.bench.timer import watch
from eval.options import Separated
from service.engine.loading.checkpoint import EMBEDDED, LoadedModel, load_model
from sparse_attn import backend
from sparse_attn.plan.state import PolicyState

TARGET_SPEEDUP = 2.0
POLICIES = ("quest:interval=4,dense_layers=0", "quest:interval=4,dense_layers=0,budget=2048")
PREFILL = "trianglemix:deep=1.0,last=256,gate=1024"  # the same for all: only decode is compared
DENSE = "dense"


@dataclass(frozen=True, kw_only=True)
class Options(ThreadedOptions):
    """Decode behind a long context, beside transformers and with pages selected."""

    threads: Threads = 2
    contexts: Annotated[tuple[int, ...], Option("--context", help="Prompt length; may be repeated.")] = (16384,)
    new_tokens: NewTokens = 32
    repeats: Repeats = 2
    text: Annotated[Path | None, Option(help="Text for the reader; without it only the random model runs.")] = None
    reader_contexts: Annotated[tuple[int, ...], Separated(), Option(help="The reader's prompt lengths.")] = (
        4096, 16384, 65536,
    )  # fmt: skip
    policies: Policies = POLICIES


def run(options: Options) -> Figures:
    """Tokens per second at batch 1, greedy, float32, no drafter, for each length of context.

    Returns, a context: both systems' times, `speedup` = ours ÷ theirs in tokens/s (medians over all tokens of all
    repeats), and how many greedy ids agree.
    """
    rows = []
    for context in options.contexts:
        theirs, ours = compare(context, options.new_tokens, options.repeats)
        speedup = ours.tokens_per_s / theirs.tokens_per_s
        figures = {"context": context, "transformers": theirs.figures(), "folio": ours.figures(), "speedup": speedup}
        rows.append(figures | {"agreeing_ids": agreeing(ours.ids, theirs.ids)})
    figures = {
        "model": MODEL,
        **options.told("threads", "new_tokens", "repeats"),
        "target_speedup": TARGET_SPEEDUP,
        "rows": rows,
    }
    return figures | ({"reader": reader(options, options.text)} if options.text else {})


def reader(options: Options, text: Path) -> list[Row]:
    """A row a length and decode policy, dense first: milliseconds a token of a whole step, without a drafter.

    ``kernel_ms`` and ``index_ms`` are the parts of it that go into attention and into choosing pages; ``speedup`` is
    over dense.
    """
    loaded = load_model(EMBEDDED)
    rows: list[Row] = []
    for context in options.reader_contexts:
        ids = text_ids(loaded, text.read_text(encoding="utf-8"), min(context, loaded.max_len - HEADROOM))
        own = [_row(loaded, ids, policy, options.new_tokens) for policy in (DENSE, *options.policies)]
        rows += [row | {"speedup": own[0]["ms_per_token"] / row["ms_per_token"]} for row in own]
    return rows


def _row(loaded: LoadedModel, ids: list[int], policy: str, new_tokens: int) -> dict[str, Any]:
    timing = Timing()
    with (
        build(loaded, 1.2 * len(ids) + 2048) as engine,
        watch(backend, "_attend") as attended,
        watch(PolicyState, "plan") as planned,
    ):
        found = ask(engine, ids, plain(new_tokens, f"{PREFILL}+{policy}"), timing)
    steps = len(timing.between_s)
    return {
        "context": len(ids),
        "decode": policy,
        "new_tokens": len(found.token_ids),
        "ms_per_token": 1e3 * median(timing.between_s),
        "kernel_ms": 1e3 * sum(attended.since(found.times[0])) / steps,
        "index_ms": 1e3 * sum(planned.since(found.times[0])) / steps,
        "density": found.stats.get("decode_density", 1.0),
    }


command = bench(Options, run, "bench_decode")

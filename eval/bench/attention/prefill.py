"""Time to the first token of a long prompt: the engine beside transformers (sdpa), in turn, on one random model, dense;
and of the embedded reader on text, under sparse policies and in other engines.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Annotated

from typer import Option

from eval.bench.base import Figures, Policies, Repeats, Row, ThreadedOptions, Threads, bench
from eval.bench.beside_transformers import MODEL, compare
from eval.bench.runner import HEADROOM, Timing, ask, build, plain, text_ids
from eval.bench.timer import in_turn, watch
from eval.errors import EvalError
from eval.options import Separated
from eval.peers.client import PEERS, Worker
from eval.peers.convert import converted
from service.engine.async_engine import AsyncEngine
from service.engine.loading.checkpoint import EMBEDDED, LoadedModel, load_model
from service.reader import MODEL_DIR
from sparse_attn import backend

TARGET_SPEEDUP = 0.95
POLICIES = ("auto", "lserve", "trianglemix", "minference", "xattention:means=true")
DENSE = "dense"


@dataclass(frozen=True, kw_only=True)
class Options(ThreadedOptions):
    """Prefill long prompts, beside other engines and under sparse policies."""

    threads: Threads = 2
    contexts: Annotated[tuple[int, ...], Option("--context", help="Prompt length; may be repeated.")] = (4096, 16384)
    repeats: Repeats = 2
    text: Annotated[Path | None, Option(help="Text for the reader; without it only the random model runs.")] = None
    reader_contexts: Annotated[tuple[int, ...], Separated(), Option(help="The reader's prompt lengths.")] = (
        16384, 32768, 65536,
    )  # fmt: skip
    policies: Policies = POLICIES
    peers: Annotated[tuple[str, ...], Separated(), Option(help="Other engines, separated by commas.")] = (
        "transformers", "openvino", "openvino-xattention",
    )  # fmt: skip
    peers_up_to: Annotated[int, Option(help="Longest prompt of the other engines.")] = 32768


def run(options: Options) -> Figures:
    """Seconds to the first token at batch 1, float32, dense attention, for each prompt length.

    Returns, a length: both systems' times and `speedup` = theirs ÷ ours (medians of the repeats).
    """
    rows = []
    for context in options.contexts:
        theirs, ours = compare(context, 2, options.repeats)
        speedup = theirs.median_first_s / ours.median_first_s
        figures = {"context": context, "transformers": theirs.figures(), "folio": ours.figures(), "speedup": speedup}
        rows.append(figures | {"same_first_id": ours.ids[0] == theirs.ids[0]})
    figures = {
        "model": MODEL,
        **options.told("threads", "repeats"),
        "target_speedup": TARGET_SPEEDUP,
        "rows": rows,
    }
    return figures | ({"reader": reader(options, options.text)} if options.text else {})


def reader(options: Options, text: Path) -> list[Row]:
    """A row a length and system; policies in this process in turn, peers each in one of its own.

    ``speedup`` is the dense policy's time ÷ the system's. ``index_s`` and ``kernel_s`` are the parts of a policy's time
    that went into choosing blocks and into attention; a peer that fails has its error in its row. Beyond 32,768 tokens
    each system runs once.
    """
    loaded = load_model(EMBEDDED)
    rows: list[Row] = []
    for context in sorted(options.reader_contexts):
        length = min(context, loaded.max_len - HEADROOM)
        ids = text_ids(loaded, text.read_text(encoding="utf-8"), length)
        repeats = options.repeats if context <= 32768 else 1
        own = _policy_rows(loaded, ids, [DENSE, *options.policies], repeats)
        if context <= options.peers_up_to:
            own += [_peer_row(name, ids, repeats, options.threads) for name in options.peers]
        for row in own:
            if "ttft_s" in row:
                row["speedup"] = own[0]["ttft_s"] / row["ttft_s"]
            rows.append({"context": length, **row})
    return rows


def _policy_rows(loaded: LoadedModel, ids: list[int], policies: list[str], repeats: int) -> list[Row]:
    """A row a policy, all of them in turn on one engine, ``repeats`` times."""
    with build(loaded, 1.2 * len(ids) + 2048) as engine:
        ask(engine, ids[:512], plain(2))  # warm
        runs = in_turn({policy: partial(_run_policy, engine, ids, policy) for policy in policies}, repeats)
    rows = []
    for policy, own in runs.items():
        taken = [run["ttft_s"] for run in own]
        middle = sorted(own, key=lambda run: run["ttft_s"])[len(own) // 2]
        rows.append({**middle, "system": f"folio {policy}", "first_token_s": taken, "ttft_s": median(taken)})
    return rows


def _run_policy(engine: AsyncEngine, ids: list[int], policy: str) -> Row:
    timing = Timing()
    with watch(backend, "_attend") as attended:
        found = ask(engine, ids, plain(1, policy), timing)
    return {
        "in_force": found.stats["attention"],
        "ttft_s": timing.first_s[0],
        "kernel_s": sum(attended.seconds),
        "index_s": found.stats.get("index_s", 0.0),
        "density": found.stats.get("prefill_density", 1.0),
        "first_id": found.token_ids[0],
    }


def _peer_row(name: str, ids: list[int], repeats: int, threads: int) -> Row:
    try:
        with Worker(PEERS[name]) as worker:
            worker.load(converted(MODEL_DIR, PEERS[name].worker), threads=threads, context=len(ids) + HEADROOM)
            worker.generate(ids[:512], 2)  # warm
            timings = [worker.generate(ids, 2) for _ in range(repeats)]
    except EvalError as error:
        return {"system": name, "error": error.detail}
    taken = [timing.ttft_s for timing in timings]
    return {"system": name, "first_token_s": taken, "ttft_s": median(taken), "first_id": timings[0].ids[0]}


command = bench(Options, run, "bench_prefill")

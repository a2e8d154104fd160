"""What a model's numbers cost and what they are worth: perplexity, prefill, decode and memory of each precision.

Each precision runs in turn over the same windows of a text, through the engine's own forward (paged KV, its kernels).
Perplexities are compared in pairs, a window against itself, with the standard error of the mean difference.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Annotated

import torch
from typer import Option

from eval.bench.base import Figures, Model, Row, ThreadedOptions, Threads, bench
from eval.bench.runner import Timing, ask, plain
from eval.errors import EvalError
from eval.options import Separated
from service.engine.async_engine import AsyncEngine
from service.engine.config import EngineConfig
from service.engine.engine import Engine
from service.engine.loading.checkpoint import LoadedModel, load_model
from service.engine.params import SamplingParams
from service.engine.request import Request
from service.engine.runner.packed_layers import packed_layers
from service.engine.step import Slice

REFERENCE = "float32/plain"
REPEATS = 3


@dataclass(frozen=True, kw_only=True)
class Options(ThreadedOptions):
    """Measure perplexity, speed and memory of a model in several precisions."""

    text: Annotated[Path, Option(help="Text that nothing was tuned on.")]
    model: Model = "smollm2"
    threads: Threads = 2
    precisions: Annotated[tuple[str, ...], Separated(), Option(help="DTYPE/WEIGHTS[/ACTIVATIONS], by commas.")] = (
        REFERENCE, "float32/stored", "bfloat16/stored", "bfloat16/int8", "bfloat16/stored/int8",
    )  # fmt: skip
    windows: Annotated[int, Option(min=2, help="Windows of the text.")] = 12
    window: Annotated[int, Option(min=16, help="Tokens of each.")] = 1024
    contexts: Annotated[
        tuple[int, ...], Separated(), Option(help="Prompt lengths that are timed; none for no times.")
    ] = (512, 2048)
    new_tokens: Annotated[int, Option(min=2, help="Tokens decoded behind each.")] = 48


def run(options: Options) -> Figures:
    """A row a precision; the first is what the others are compared with."""
    losses: dict[str, list[float]] = {}
    rows = []
    for name in options.precisions:
        dtype, weights, activations = (*name.split("/"), "auto", "auto")[:3]
        began = time.perf_counter()
        loaded = load_model(options.model, dtype, weights=weights, activations=activations)  # type: ignore[arg-type]
        load_s = time.perf_counter() - began
        ids = _ids(loaded, options)
        config = EngineConfig(dtype=loaded.dtype, kv_memory=512 << 20, drafter="none", attention="dense")  # type: ignore[arg-type]
        engine = Engine(loaded, config)
        losses[name] = [_loss(engine, window) for window in ids]
        row: Row = {"precision": name, "weights_mb": _weight_bytes(loaded) / 1e6}
        row["perplexity"] = math.exp(mean(losses[name]))
        differences = [a - b for a, b in zip(losses[name], losses[options.precisions[0]], strict=True)]
        row["perplexity_change_percent"] = 100 * math.expm1(mean(differences))
        row["change_se_percent"] = 100 * stdev(differences) / math.sqrt(len(differences))
        if options.contexts:
            row |= {"load_s": load_s, **_speeds(engine, ids, options)}
        rows.append(row)
    return {**options.told("model", "threads", "windows", "window"), "text": options.text.name, "precisions": rows}


def _ids(loaded: LoadedModel, options: Options) -> list[list[int]]:
    ids = loaded.tokenizer(options.text.read_text(encoding="utf-8")).input_ids
    needed = options.windows * options.window
    if len(ids) < needed:
        raise EvalError(f"{options.text.name} has {len(ids)} tokens, not {needed}", hint="Ask for fewer windows.")
    return [ids[start : start + options.window] for start in range(0, needed, options.window)]


@torch.inference_mode()
def _loss(engine: Engine, ids: list[int]) -> float:
    """Mean negative log-likelihood of a window's tokens but the first."""
    request = Request("window", ids, SamplingParams())
    request.pages = engine.blocks.allocate(engine.blocks.pages_for(len(ids)))
    logits = engine.runner.run([Slice(request, 0, ids, samples=True, all_logits=True)]).logits
    engine.blocks.release(request.pages)
    return float(torch.nn.functional.cross_entropy(logits[:-1].float(), torch.tensor(ids[1:])))


def _weight_bytes(loaded: LoadedModel) -> int:
    plain = {p.data_ptr(): p.numel() * p.element_size() for p in loaded.model.parameters()}
    packed = {layer.packed.data.data_ptr(): layer.packed.num_bytes for layer in packed_layers(loaded.model)}
    return sum(plain.values()) + sum(packed.values())


def _speeds(engine: Engine, windows: Sequence[list[int]], options: Options) -> Row:
    """Tokens a second of a prompt, and milliseconds a token behind it: medians of the repeats."""
    every = [token for window in windows for token in window]
    row: Row = {}
    with AsyncEngine(engine) as door:
        for context in options.contexts:
            timing = Timing()
            for start in range(REPEATS):
                ask(door, every[start : start + context], plain(options.new_tokens), timing)
            row[f"prefill_{context}_tokens_per_s"] = context / timing.median_first_s
            row[f"decode_{context}_ms"] = 1e3 / timing.tokens_per_s
    return row


command = bench(Options, run, "precision")

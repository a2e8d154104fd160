"""Every drafter against plain decoding: the same weights, the same prompts, the same tokens.

Three workloads, each at a context length: `quoting` (questions over a folder of text, those of many that the model
answers by quoting), `spec_bench` (Spec-Bench's retrieval and summarisation prompts, put one after the other up to the
length) and `nothing` (random words, and those endings of many after which the answer repeats least); and, if asked for,
`questions` (those of `quoting`, whatever the model answers). A prompt's KV is computed once and found in the prefix
cache by every drafter, so what is timed is decoding. What a drafter does before its first guess (an index, a draft
prompt's prefill) is reported apart, as `start_s`.

A cell is a workload, a context, a temperature, a batch and a dtype. Plain decoding and all drafters take turns in it at
every prompt, or batch of prompts, so that a change of the machine's pace meets all of them, and go through the prompts
several rounds; a drafter's speed-up is the median of its ratios to plain decoding of the same round. `auto` and all
that is nearly as fast as the fastest then take four times as many rounds more, and `over_best_single` is the least of
the medians of the ratios of `auto` to another drafter: a round varies by more than the difference asked for.
The table is made in pieces: cells that the file of figures has are kept, and the file is written after each new one.

Drafters that want a draft model (`draft_model`, `adaptive`, `multi_round`) take part if one is given. The tokens of
`multi_round` are those of plain decoding when greedy alone; a sampled cell of it is not `identical`.
"""

from __future__ import annotations

import json
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from drafters.training.distill import DISTILLATION
from eval.bench._drafter_forwards import tree_forwards
from eval.bench._drafter_prompts import ANSWERED, WORKLOADS, make_prompts
from eval.bench._drafter_timing import PLAIN, Timing, divergences, timed
from eval.errors import EvalError
from eval.figures import RESULTS, command_line, git_sha, report_result, save_result
from eval.tasks.quoting import read_folder
from retrieval.index.token_store import TokenStore
from service.engine.engine import Engine
from service.engine.request import DraftSources, SamplingParams

DRAFTERS = (
    "auto",
    "prompt_lookup",
    "suffix",
    "recycling",
    "datastore",
    "rag",
    "cascade",
    "fusion",
    "goodput:inner=suffix",
    "self_speculation",
    "overlap:inner=rag",
)
_WITH_DRAFT_MODEL = ("draft_model", "adaptive", "multi_round", "overlap:inner=draft_model")
_CLOSE = 0.8  # of the fastest drafter's tokens per second: those above it are worth more rounds …
_MORE = 4  # … so many times as many
_WITH_FORWARDS = ("rag", "cascade", "fusion", "self_speculation", "draft_model", "overlap", "adaptive", "multi_round")


def run(
    model: str = "embedded",
    draft_model: str | None = None,
    contexts: Sequence[int] = (2048, 8192, 16384, 32768),
    workloads: Sequence[str] = WORKLOADS[:3],
    drafters: Sequence[str] | None = None,
    temperatures: Sequence[float] = (0.0, 0.8),
    batches: Sequence[int] = (1,),
    text: Path = Path("../shared/corpus"),
    spec_bench: Path = Path("../shared/spec_bench/question.jsonl"),
    prompts: int = 4,
    max_tokens: int = 64,
    rounds: int = 3,
    dtype: str = "float32",
    device: str = "cpu",
    kv_memory: int = 4 << 30,
    peer: bool = False,
    forwards: bool = True,
    limit_s: float | None = None,
    known: dict[str, Any] | None = None,
    save: Callable[[dict[str, Any]], None] = lambda figures: None,
) -> dict[str, Any]:
    """Figures of every cell; those of `known` are kept, and no cell is begun after `limit_s` seconds.

    `drafters` are by default all for which there is a model. `save` is called with all figures after each cell.
    """
    began = time.perf_counter()
    drafters = drafters or DRAFTERS + (_WITH_DRAFT_MODEL if draft_model else ())
    figures: dict[str, Any] = known or {"model": model, "device": device, "cells": [], "forwards": [], "peers": []}
    engine = Engine.from_pretrained(
        model,
        draft_model=draft_model,
        dtype=dtype,
        device=device,
        kv_memory=kv_memory,
        max_running=64,
        attention="dense",
    )
    if draft_model and (trained := Path(draft_model, DISTILLATION)).is_file():
        figures["distillation"] = json.loads(trained.read_text(encoding="utf-8"))
    figures["kernels"] = sorted({*figures.get("kernels", []), *engine.kernels})
    store: TokenStore | None = None
    if any(name.startswith("datastore") for name in drafters) and engine.tokenizer is not None:
        store = _datastore(engine, text)
    stamp = {"command": command_line(), "git": git_sha()}

    def keep(kind: str, place: dict[str, Any], measured: list[dict[str, Any]]) -> None:
        figures[kind] += [place | one | stamp for one in measured]
        figures["kernels"] = sorted({*figures["kernels"], *engine.kernels})
        save(figures)

    for context in contexts:
        if context + max_tokens > engine.max_model_len:
            raise EvalError(f"{model} reads {engine.max_model_len} tokens, {context} were asked for")
        place: dict[str, Any] = {"context": context, "dtype": dtype}
        if forwards and not _has(figures["forwards"], place):
            keep("forwards", place, [tree_forwards(engine, context)])
    for context in contexts:
        for workload in workloads:
            base: dict[str, Any] = {"workload": workload, "context": context, "dtype": dtype}
            wanted = [
                base | {"temperature": temperature, "batch": batch}
                for temperature in temperatures
                for batch in batches
                if not _has(figures["cells"], base | {"temperature": temperature, "batch": batch})
            ]
            with_peer = peer and not _has(figures["peers"], base)
            if not (wanted or with_peer):
                continue
            made = make_prompts(engine, workload, context, prompts + 1, text, spec_bench)
            warm, *asked = made.ids
            stops = workload in ANSWERED
            sizes = {"prompts": len(asked), "chosen_from": made.chosen_from, "max_tokens": max_tokens, "rounds": rounds}
            for cell_place in wanted:
                if limit_s is not None and time.perf_counter() - began > limit_s:
                    return figures
                params = SamplingParams(
                    max_tokens=max_tokens,
                    temperature=cell_place["temperature"],
                    seed=1,
                    ignore_eos=not stops,
                )
                keep(
                    "cells",
                    cell_place | sizes,
                    cell(engine, warm, asked, params, drafters, cell_place["batch"], rounds, store),
                )
            if with_peer:
                from eval.bench._drafter_peer import beside_transformers

                keep("peers", base | sizes, [beside_transformers(engine, asked, max_tokens, stops, rounds)])
    return figures


def cell(
    engine: Engine,
    warm: list[int],
    asked: Sequence[list[int]],
    params: SamplingParams,
    drafters: Sequence[str],
    batch: int,
    rounds: int = 3,
    store: TokenStore | None = None,
) -> list[dict[str, Any]]:
    """Plain decoding and every drafter in turn, `rounds` times; then the fastest of them. Prompts are repeated, under
    other seeds, to fill the last batch.

    A drafter starts every round without what was learned of the texts, and reads one prompt, `warm`, before its time
    is taken: its answer is none of those asked for.
    """
    timed(engine, [warm, *asked], params, PLAIN, 1)  # the prompts' KV, and the kernels' first use
    asked = [asked[i % len(asked)] for i in range(-(-len(asked) // batch) * batch)]
    taken: dict[str, list[Timing]] = {name: [] for name in (PLAIN, *drafters)}

    def take_turns(names: Sequence[str], turns: range) -> None:
        for turn in turns:
            timings = _in_turn(engine, names, warm, asked, params, batch, store, random.Random(turn))
            for name, timing in timings.items():
                taken[name].append(timing)

    take_turns(list(taken), range(rounds))
    middle = {name: statistics.median(timing.rate for timing in timings) for name, timings in taken.items()}
    close = [name for name, rate in middle.items() if name == "auto" or rate >= _CLOSE * max(middle.values())]
    if "auto" in close and len(close) > 1:
        take_turns(close, range(rounds, rounds + _MORE * rounds))
    plain = taken.pop(PLAIN)
    rates = [timing.rate for timing in plain]
    measured: list[dict[str, Any]] = [
        {
            "drafter": PLAIN,
            "tokens_per_s": statistics.median(rates),
            "tokens": plain[0].tokens,
            "spread": max(rates) / min(rates),
        }
    ]
    for name, timings in taken.items():
        measured.append({"drafter": name, "rounds": len(timings)} | _compared(name, timings, plain))
        measured[-1]["identical"] = all(timing.ids == plain[0].ids for timing in timings)
        measured[-1]["divergences"] = divergences(engine, asked, plain[0].ids, timings[-1].ids, params)
    for one in measured:
        if one["drafter"] == "auto" and len(taken) > 1:
            one["over_best_single"] = min(_ratio(taken["auto"], own) for name, own in taken.items() if name != "auto")
    return measured


def _in_turn(
    engine: Engine,
    names: Sequence[str],
    warm: list[int],
    asked: Sequence[list[int]],
    params: SamplingParams,
    batch: int,
    store: TokenStore | None,
    order: random.Random,
) -> dict[str, Timing]:
    """One round: at each prompt, or batch of prompts, every drafter in an order of its own."""
    shared = engine.drafting.resources
    taught = {name: shared.untaught() for name in names}
    parts: dict[str, list[Timing]] = {name: [] for name in names}

    def take(name: str, prompts: Sequence[list[int]], first: int = 0) -> Timing:
        engine.drafting.resources = taught[name]
        sources = DraftSources(datastore=store) if name.startswith("datastore") else None
        return timed(engine, prompts, replace(params, seed=params.seed + first), name, len(prompts), sources)

    for name in names:
        take(name, [warm])
    for first in range(0, len(asked), batch):
        for name in order.sample(names, len(names)):
            parts[name].append(take(name, asked[first : first + batch], first))
    engine.drafting.resources = shared
    return {name: Timing.joined(own) for name, own in parts.items()}


def _ratio(timings: Sequence[Timing], others: Sequence[Timing]) -> float:
    """The median of the ratios of two drafters' rates in the rounds that both took part in, which are the first."""
    return statistics.median(own.rate / other.rate for own, other in zip(timings, others, strict=False))


def _compared(name: str, timings: Sequence[Timing], plain: Sequence[Timing]) -> dict[str, Any]:
    middle = sorted(timings, key=lambda timing: timing.rate)[len(timings) // 2]
    drafting = middle.drafting
    figures = {
        "tokens_per_s": middle.rate,
        "speedup": _ratio(timings, plain),
        "start_s": middle.start_s,
        "speedup_with_start": statistics.median(
            own.tokens / (own.decode_s + own.start_s) / other.rate for own, other in zip(timings, plain, strict=False)
        ),
        **drafting,
    }
    if drafting:
        bookkeeping = drafting["verifying_seconds"]
        if not name.startswith(_WITH_FORWARDS):
            bookkeeping += drafting["drafting_seconds"]
        figures["bookkeeping_share"] = bookkeeping / middle.decode_s
    return figures


def _datastore(engine: Engine, text: Path) -> TokenStore:
    """The held-out documents of the folder, from which `quoting` takes its contexts."""
    encode = engine.tokenizer.encode
    documents = [encode(" ".join(one.sentences), add_special_tokens=False) for one in read_folder(text)]
    return TokenStore.build(documents, engine.loaded.tokenizer_fingerprint or "")


def _has(rows: Sequence[dict[str, Any]], place: dict[str, Any]) -> bool:
    return any(all(row.get(key) == value for key, value in place.items()) for row in rows)


def command(
    model: Annotated[str, typer.Option(help="Folder, hub id or 'embedded'.")] = "embedded",
    draft_model: Annotated[
        str | None, typer.Option(help=f"Folder or hub id; with it also {', '.join(_WITH_DRAFT_MODEL)}.")
    ] = None,
    context: Annotated[list[int] | None, typer.Option(help="Prompt tokens; may be repeated.")] = None,
    workload: Annotated[list[str] | None, typer.Option(help=f"Of {', '.join(WORKLOADS)}.")] = None,
    drafter: Annotated[list[str] | None, typer.Option(help="NAME[:key=value,…]; may be repeated.")] = None,
    temperature: Annotated[list[float] | None, typer.Option(help="0 is greedy; may be repeated.")] = None,
    batch: Annotated[list[int] | None, typer.Option(help="Sequences at a time; may be repeated.")] = None,
    text: Annotated[Path, typer.Option(help="Folder of text for the quoting workload.")] = Path("../shared/corpus"),
    spec_bench: Annotated[Path, typer.Option(help="Spec-Bench's question.jsonl.")] = Path(
        "../shared/spec_bench/question.jsonl"
    ),
    prompts: Annotated[int, typer.Option(help="Prompts a cell.")] = 4,
    max_tokens: Annotated[int, typer.Option(help="Tokens a prompt.")] = 64,
    rounds: Annotated[int, typer.Option(help="Turns that plain decoding and the drafters take in a cell.")] = 3,
    dtype: Annotated[str, typer.Option(help="Of the model.")] = "float32",
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    peer: Annotated[bool, typer.Option(help="Also time transformers' prompt lookup.")] = False,
    forwards: Annotated[bool, typer.Option(help="Also time forwards over trees.")] = True,
    limit: Annotated[float | None, typer.Option(help="Begin no cell after so many seconds.")] = None,
    fresh: Annotated[bool, typer.Option(help="Forget the cells that the file has.")] = False,
    picture: Annotated[Path | None, typer.Option(help="File for a chart of all cells of the file.")] = None,
    name: Annotated[str, typer.Option(help="Of the file in eval/results.")] = "drafters",
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures.")] = False,
    output: Annotated[Path | None, typer.Option(help="File for the figures.")] = None,
) -> None:
    """Time every drafter against plain decoding and check that the tokens are the same.

    Cells that the file has are kept: a long table can be made in pieces.
    """
    path = output or RESULTS / f"{name}.json"
    known = json.loads(path.read_text(encoding="utf-8"))["figures"] if path.is_file() and not fresh else None

    def save(figures: dict[str, Any]) -> None:
        save_result(name, figures, command_line(), output)

    figures = run(
        model=model,
        draft_model=draft_model,
        contexts=context or (2048, 8192, 16384, 32768),
        workloads=workload or WORKLOADS[:3],
        drafters=drafter,
        temperatures=temperature or (0.0, 0.8),
        batches=batch or (1,),
        text=text,
        spec_bench=spec_bench,
        prompts=prompts,
        max_tokens=max_tokens,
        rounds=rounds,
        dtype=dtype,
        device=device,
        peer=peer,
        forwards=forwards,
        limit_s=limit,
        known=known,
        save=save,
    )
    if picture is not None:
        from eval.bench._drafter_chart import chart

        chart(figures, picture)
    report_result(name, figures, as_json=as_json, output=output)

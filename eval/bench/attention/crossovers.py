"""``folio bench crossovers``: from which position on each policy beats dense attention, and what it changes.

On Q, K and V captured from a model on a text, chunk by chunk as the engine would run them: the last chunk of a prompt
of each length (prefill) and one row after it (decode), dense against each candidate, index included. The fastest
candidate whose output stays within ``--max-error`` of dense attention, gated at the length from which on it is faster
at every longer one, goes into the table that the policy ``auto`` reads. Error is relative L2 distance of the
outputs, averaged over layers. Where ``folio bench accuracy`` has counted right answers under a candidate, its figures
(``--accuracy``) decide instead: outputs may differ in heads that no answer depends on, and agree where one does not.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
from torch.nn import functional
from typer import Option

from eval.auto_table import FASTER, write_table
from eval.bench.base import Figures, Lengths, Model, Repeats, ThreadedOptions, bench
from eval.bench.runner import text_ids
from eval.bench.timer import seconds
from eval.errors import EvalError
from eval.options import Separated
from service.engine.loading.checkpoint import load_model
from service.engine.options import parse_policy
from sparse_attn.kernels import select_kernels
from sparse_attn.kernels.operands import Pages, Rows
from sparse_attn.kv.page_stats import PageStats
from sparse_attn.plan.capture import Captured, capture
from sparse_attn.plan.policies import Joined
from sparse_attn.plan.policy import ModelShape, Policy
from sparse_attn.plan.state import PolicyState
from sparse_attn.rows import HeadPages, SequenceRows

PREFILL = (
    "xattention",
    "xattention:means=true",
    "xattention:means=true,p=0.95",
    "flexprefill",
    "trianglemix",
    "trianglemix:deep=1.0,last=256",
)
DECODE = ("quest:interval=4,dense_layers=0", "quest:interval=4,dense_layers=0,budget=2048")
MAX_LOSS = {"kv": 2.0}  # points of right and of quoted answers; 1 for the other tasks


@dataclass(frozen=True, kw_only=True)
class Options(ThreadedOptions):
    """Measure from which length on each sparse policy beats dense attention; update the table of `auto`."""

    model: Model = "embedded"
    text: Annotated[Path | None, Option(help="Text, repeated to the longest length; default: made text.")] = None
    lengths: Lengths = (2048, 4096, 8192, 16384, 32768)
    chunk: Annotated[int, Option(min=64, help="Rows of a prefill chunk.")] = 2048
    prefill: Annotated[tuple[str, ...], Separated(";"), Option(help="Candidates, separated by semicolons.")] = PREFILL
    decode: Annotated[tuple[str, ...], Separated(";"), Option(help="Candidates, separated by semicolons.")] = DECODE
    max_error: Annotated[float, Option(min=0, help="Largest error of a policy in the table.")] = 0.05
    accuracy: Annotated[Path | None, Option(help="Figures of `folio bench accuracy` for this model.")] = None
    repeats: Repeats = 3
    table: Annotated[Path | None, Option(help="Table of `auto` to update for this device.")] = None


def measure(options: Options) -> Figures:
    """The command: figures, and the table of `auto` if one is named."""
    loaded = load_model(options.model)
    figures = run(loaded, options)
    if options.table is not None:
        write_table(options.table, figures["device"], figures["table"], loaded)
    return figures


def run(loaded: Any, options: Options) -> Figures:
    """Rows of time, density and error for each length and candidate, and the table made of them.

    Raises:
        EvalError: the model is shorter than the longest length, or has no tokenizer.
    """
    lengths = sorted(options.lengths)
    if lengths[-1] + 1 > loaded.max_len:
        raise EvalError(f"The model holds {loaded.max_len} tokens; ask for lengths below that.")
    text = options.text.read_text(encoding="utf-8") if options.text is not None else None
    captured = capture(loaded.model, text_ids(loaded, text, lengths[-1] + 1))
    shape = ModelShape.of_config(loaded.model.config.get_text_config())
    timings = _Timings(captured, shape, options.chunk, options.repeats)
    rows: list[dict[str, Any]] = []
    for length in lengths:
        for phase, candidates in (("prefill", options.prefill), ("decode", options.decode)):
            rows += timings.rows(phase, length, candidates)
    counted = json.loads(options.accuracy.read_text(encoding="utf-8")) if options.accuracy else None
    return {
        "device": captured[0].q.device.type,
        "model": loaded.name,
        "chunk": options.chunk,
        "max_error": options.max_error,
        "rows": rows,
        "table": make_table(rows, options.max_error, counted["figures"]["policies"] if counted else None),
    }


def make_table(
    rows: Sequence[dict[str, Any]], max_error: float, accuracy: dict[str, Any] | None = None
) -> list[dict[str, Any]]:
    """What `auto` reads: dense at first, then the best prefill and decode policies from where they begin to pay."""
    rows = [{**row, "sound": _sound(row, max_error, accuracy or {})} for row in rows]
    chosen: dict[str, tuple[int, str]] = {}
    for phase in ("prefill", "decode"):
        best = [c for policy in dict.fromkeys(r["policy"] for r in rows) if (c := _crossover(rows, phase, policy))]
        if best:
            chosen[phase] = min(best, key=lambda c: c[2])[:2]
    starts = sorted({start for start, _ in chosen.values()})
    table: list[dict[str, Any]] = [{"min_length": 0, "policy": "dense"}]
    for start in starts:
        parts = [chosen[p][1] if p in chosen and chosen[p][0] <= start else "dense" for p in ("prefill", "decode")]
        table.append({"min_length": start, "policy": "+".join(parts)})
    return table


def _sound(row: dict[str, Any], max_error: float, accuracy: dict[str, Any]) -> bool:
    """Does the policy keep the answers (within MAX_LOSS, a task), or where none were counted, the outputs?"""
    wanted = replace(parse_policy(row["policy"]), gate=0)
    counted = [tasks for name, tasks in accuracy.items() if wanted in _parts(name)]  # alone, or beside another part
    if not counted:
        return bool(row["error"] <= max_error)
    # The first token of an answer is prefill's, the rest is decode's: both are asked for.
    scores = ("right_points_lost", "quoted_points_lost")
    return any(all(t[s] <= MAX_LOSS.get(task, 1.0) for task, t in tasks.items() for s in scores) for tasks in counted)


def _parts(name: str) -> list[Policy]:
    """The policy of that name, or the two that it joins, without their gates."""
    policy = parse_policy(name)
    parts = [policy.first, policy.second] if isinstance(policy, Joined) else [policy]
    return [replace(part, gate=0) for part in parts]


def _crossover(rows: Sequence[dict[str, Any]], phase: str, policy: str) -> tuple[int, str, float] | None:
    """(first position from which on the policy is always faster and near enough, gated policy, its longest time)."""
    own = sorted((r for r in rows if r["phase"] == phase and r["policy"] == policy), key=lambda r: r["length"])
    start = None
    for row in reversed(own):
        if row["ms"] > FASTER * row["dense_ms"] or not row["sound"]:
            break
        start = row["length"]
    if start is None:
        return None
    gated = f"{policy}{',' if ':' in policy else ':'}gate={start}"
    return start, gated, own[-1]["ms"]


class _Timings:
    """Timings of one chunk or row in every layer, by the kernels that serve the device."""

    def __init__(self, captured: Sequence[Captured], shape: ModelShape, chunk: int, repeats: int) -> None:
        self.captured, self.shape, self.chunk, self.repeats = captured, shape, chunk, repeats
        self.kernels = select_kernels(captured[0].q.device, captured[0].q.dtype)

    def rows(self, phase: str, length: int, candidates: Sequence[str]) -> list[dict[str, Any]]:
        """A row a candidate: milliseconds over all layers, of which index; density; error."""
        first, end = (max(0, length - self.chunk), length) if phase == "prefill" else (length, length + 1)
        layers = [_PagedLayer(c, first, end, self.shape.page_size) for c in self.captured]
        read = partial(self._attend, layers, [None] * len(layers))
        dense, truth = self._seconds(read), read()
        rows = []
        for text in candidates:
            state = self._state(text, first, end, phase)
            indices = [state.plan(layer.rows) for layer in layers]
            planning = self._planning(text, layers, first, end, phase)
            read = partial(self._attend, layers, indices)
            reading, got = self._seconds(read), read()
            errors = [float((a - b).norm() / b.norm()) for a, b in zip(got, truth, strict=True)]
            stats = state.prefill_stats if phase == "prefill" else state.decode_stats
            rows.append(
                {
                    "phase": phase,
                    "length": length,
                    "policy": text,
                    "dense_ms": dense * 1e3,
                    "index_ms": planning * 1e3,
                    "kernel_ms": reading * 1e3,
                    "ms": (planning + reading) * 1e3,
                    "density": stats.density,
                    "error": statistics.mean(errors),
                }
            )
        return rows

    def _attend(self, layers: Sequence[_PagedLayer], indices: Sequence[Any]) -> list[Any]:
        return [layer.attend(self.kernels, index) for layer, index in zip(layers, indices, strict=True)]

    def _state(self, text: str, first: int, end: int, phase: str) -> PolicyState:
        policy = parse_policy(text)
        policy.check(self.shape)
        prompt_len = end if phase == "prefill" else first
        return PolicyState(replace(policy, gate=0), self.shape, prompt_len)

    def _planning(self, text: str, layers: Sequence[_PagedLayer], first: int, end: int, phase: str) -> float:
        """Time to plan as the engine does: after the earlier chunks; a selection serves its whole interval."""
        if phase == "decode":
            state = self._state(text, first, end, phase)
            rule = state.policy.decode(self.shape.num_layers - 1, self.shape)
            return self._seconds(lambda: [state.plan(layer.rows) for layer in layers]) / (rule.interval if rule else 1)
        times = []
        for _ in range(self.repeats):
            state = self._state(text, first, end + 1, phase)  # not the last chunk: nothing is dropped
            for layer in layers:
                if first:
                    state.plan(layer.earlier)
            times.append(seconds(partial(_plan, state, layers)))
        return statistics.median(times)

    def _seconds(self, work: Callable[[], Any]) -> float:
        return statistics.median(seconds(work) for _ in range(self.repeats))


def _plan(state: PolicyState, layers: Sequence[_PagedLayer]) -> list[Any]:
    return [state.plan(layer.rows) for layer in layers]


class _PagedLayer:
    """One captured layer, its tokens before ``first`` in pages, the rows ``first:end`` new."""

    def __init__(self, captured: Captured, first: int, end: int, page_size: int) -> None:
        def pages(x: torch.Tensor) -> torch.Tensor:
            padded = functional.pad(x[:first], (0, 0, 0, 0, 0, -first % page_size + page_size))
            return padded.unflatten(0, (-1, page_size)).transpose(1, 2).contiguous()

        device, (k_pages, v_pages) = captured.q.device, (pages(captured.k), pages(captured.v))
        table = torch.arange(len(k_pages), dtype=torch.int32, device=device)
        q, k, v = (x[first:end].contiguous() for x in (captured.q, captured.k, captured.v))
        self.pages = Pages(k_pages, v_pages, table[None])
        self.new = Rows.of_sequence(q, k, v, captured.scale, first, window=captured.window)
        stats = PageStats(captured.layer + 1, len(k_pages), k.shape[1], page_size, k.shape[2], device=device)
        stats.rebuild(captured.layer, k_pages)
        held = [HeadPages(range(k.shape[1]), k_pages, table, stats=stats)]
        self.rows = SequenceRows(q, k, captured.scale, first, held, window=captured.window, layer=captured.layer)
        self.earlier = SequenceRows(captured.q[:first], captured.k[:first], captured.scale, layer=captured.layer)

    def attend(self, kernels: Any, index: Any) -> Any:
        """out [n, Hq, D]."""
        return kernels.attention(self.pages, self.new, index)[0]


command = bench(Options, measure, "crossovers")

"""Rates of this machine from committed measurements: least squares of relative errors, no rate negative."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from eval.figures import RESULTS
from eval.scaling.cost import Machine, Shape, Work, decode, prefill, retrieval

RANDOM_LLAMA = Shape("random Llama, 27 M parameters", 8, 512, 8, 4, 64, 1536, 2048, weight_bytes=4, kv_bytes=4)
"""Of the benchmarks beside transformers."""


@dataclass(frozen=True)
class Measurement:
    """Something that was timed, and what it did."""

    what: str
    source: str
    seconds: float
    work: Work


def committed(folder: Path = RESULTS) -> list[Measurement]:
    """Every measurement on a CPU that a rate can be fitted to, of the result files in `folder`."""
    found = []
    for name in ("bench_prefill", "bench_decode"):
        for row in _figures(folder, name)["rows"]:
            context, ours = row["context"], row["folio"]
            work = prefill(RANDOM_LLAMA, context)
            found.append(Measurement(f"prefill of {context}", name, ours["median_first_token_s"], work))
            step = ours["decode_ms_per_token_median"] / 1e3
            found.append(Measurement(f"decode behind {context}", name, step, decode(RANDOM_LLAMA, context)))
    return found + _kernels(folder)


def _kernels(folder: Path) -> list[Measurement]:
    """One layer's attention, without the engine around it."""
    name = "bench_attention"
    figures = _figures(folder, name)
    shape = figures["shape"]
    layer = Shape("one layer", 1, 0, shape["heads"], shape["kv_heads"], shape["dim"], 0, 0, 4, 4)
    found = []
    for row in figures["decode"]:
        work = Work(bytes=row["context"] * layer.kv_bytes_per_token)
        found.append(Measurement(f"decode kernel, {row['context']}", name, row["ours_ms"] / 1e3, work))
    for row in figures["prefill"]:
        work = Work(attention_flops=prefill(layer, row["length"]).attention_flops)
        found.append(Measurement(f"prefill kernel, {row['length']}", name, row["ours_ms"] / 1e3, work))
    for row in figures["trees"]:
        whole = decode(layer, row["context"], nodes=row["nodes"])
        work = Work(whole.bytes, 0.0, whole.attention_flops)
        what = f"tree of {row['nodes']} behind {row['context']}"
        found.append(Measurement(what, name, row["ms"] / 1e3, work))
    return found


def search_check(machine: Machine, folder: Path = RESULTS) -> dict[str, float]:
    """Dense search as measured and as modelled; nothing was fitted to it."""
    figures = _figures(folder, "bench_search")
    measured = 1 / figures["search"]["dense"]["queries_per_s"]
    modelled = machine.seconds(retrieval(figures["chunks"], together=figures["clients"]))
    return {"measured_s": measured, "scan_modelled_s": modelled}


def fit(measurements: Sequence[Measurement], name: str = "this CPU") -> Machine:
    """The rates that minimise the sum of squared relative errors, all of them positive.

    Four unknowns, so the active set is found by trying every one. Raises ValueError when a rate is not determined.
    """
    works = [one.work for one in measurements]
    columns = np.array([[work.bytes, work.linear_flops, work.attention_flops, work.steps] for work in works])
    seconds = np.array([m.seconds for m in measurements])
    scaled = columns / seconds[:, None]
    units = scaled.max(axis=0)
    if np.any(units == 0):
        raise ValueError("no measurement tells bytes, linear operations, attention or steps apart")
    scaled /= units  # operations count in billions and steps in ones
    best, lowest = None, np.inf
    for size in range(1, 5):
        for active in combinations(range(4), size):
            solved, *_ = np.linalg.lstsq(scaled[:, active], np.ones(len(seconds)), rcond=None)
            costs = np.zeros(4)
            costs[list(active)] = solved
            error = float(np.square(scaled @ costs - 1).sum())
            if solved.min() >= 0 and error < lowest:
                best, lowest = costs, error
    assert best is not None
    best = best / units
    bandwidth, linear, attention = (float(1 / cost) if cost > 0 else float("inf") for cost in best[:3])
    source = f"fitted to {len(measurements)} measurements"
    return Machine(name, bandwidth, linear, attention, float(best[3]), source)


def residuals(machine: Machine, measurements: Sequence[Measurement]) -> list[dict[str, Any]]:
    """Each measurement beside the model."""
    rows = []
    for one in measurements:
        modelled = machine.seconds(one.work)
        row = {"what": one.what, "file": one.source, "measured_s": one.seconds, "modelled_s": modelled}
        rows.append(row | {"error": modelled / one.seconds - 1})
    return rows


def summary(folder: Path = RESULTS) -> dict[str, Any]:
    """Rates, their errors, and the check on search."""
    measurements = committed(folder)
    machine = fit(measurements)
    rows = residuals(machine, measurements)
    errors = [abs(row["error"]) for row in rows]
    return {
        "machine": asdict(machine),
        "median_error": median(errors),
        "largest_error": max(errors),
        "rows": rows,
        "search": search_check(machine, folder),
    }


def _figures(folder: Path, name: str) -> Any:
    return json.loads((folder / f"{name}.json").read_text())["figures"]

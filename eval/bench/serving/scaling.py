"""The cost model fitted to what other benchmarks have written to eval/results, and what it predicts of an H200.

Runs no model. See docs/scaling.md.
"""

from __future__ import annotations

from typing import Any

from eval.bench.base import BenchOptions, Figures, bench
from eval.scaling.cost import H200, LLAMA_8B, QWEN_7B, Shape, Work, decode, prefill
from eval.scaling.fit import summary


class Options(BenchOptions):
    """Fit the cost model to committed results and predict an H200."""


def run(options: Options) -> Figures:
    """The fit with the error of every measurement, and predictions."""
    ceilings = {"bytes_per_s": H200.bytes_per_s, "flops_per_s": H200.linear_flops_per_s}
    return {"cost_model": summary(), "h200": ceilings | {"rows": predictions()}}


def predictions() -> list[dict[str, Any]]:
    """What an H200 would take at its two ceilings: times that no kernel of ours has been measured at yet."""
    rows = []
    for shape in (LLAMA_8B, QWEN_7B):
        for context in (8192, 32768, 131072):
            rows.append(_row(shape, f"dense prefill of {context}", prefill(shape, context)))
        for density in (0.1, 0.05):
            rows.append(_row(shape, f"prefill of 131072 at density {density}", prefill(shape, 131072, density=density)))
        for batch, context in ((1, 131072), (16, 131072), (16, 8192)):
            rows.append(_row(shape, f"decode step, {batch} × {context}", decode(shape, context, batch)))
        rows.append(_row(shape, "decode step, 1 × 131072, 4096 visited", decode(shape, 131072, visited=4096)))
        rows.append(_row(shape, "tree of 64 nodes behind 131072", decode(shape, 131072, nodes=64)))
    return rows


def _row(shape: Shape, what: str, work: Work) -> dict[str, Any]:
    """One prediction; `state` says that it is one."""
    return {"model": shape.name, "what": what, "seconds": H200.seconds(work), "state": "not yet measured"}


def table(figures: Figures) -> list[dict[str, Any]]:
    """The measurements beside the model, for people."""
    rows: list[dict[str, Any]] = figures["cost_model"]["rows"]
    return rows


command = bench(Options, run, "scaling", table=table)

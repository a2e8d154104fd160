"""Rows to figures: mean, standard error, subgroups, and medians of the times."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from eval.scoring import SCORERS


def summarise(samples: Sequence[dict[str, Any]], speed: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The figures of one cell: n, failures, cut prompts, scores by scorer, subgroups, speed."""
    return {
        "n": len(samples),
        "failed": sum(sample["error"] is not None for sample in samples),
        "cut": sum(sample["cut_tokens"] > 0 for sample in samples),
        "scores": {scorer: score([s["scores"][scorer] for s in samples]) for scorer in SCORERS},
        "groups": groups(samples),
        "speed": speeds(speed),
    }


def score(values: Sequence[float]) -> dict[str, float | int]:
    """Mean and standard error of the mean, in percent, of scores in [0, 1]."""
    n = len(values)
    error = statistics.stdev(values) / math.sqrt(n) if n > 1 else 0.0
    return {"score": 100 * math.fsum(values) / n if n else 0.0, "stderr": 100 * error, "n": n}


def groups(samples: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Scores by every scorer for each value of each subgroup (depth, kind, calls …)."""
    parts: dict[str, dict[str, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for sample in samples:
        for group, value in sample["groups"].items():
            parts[group][str(value)].append(sample)
    return {
        group: {
            value: {scorer: score([s["scores"][scorer] for s in part]) for scorer in SCORERS}
            for value, part in values.items()
        }
        for group, values in parts.items()
    }


def speeds(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Medians over the rows that have the figure, and the harness's share of the time.

    A row whose prompt was found in the prefix cache says nothing of its engine's prefill: its times are told apart.
    """
    figures: dict[str, Any] = {}
    cached = [row for row in rows if row.get("stats", {}).get("cached_tokens")]
    whole = [row for row in rows if row not in cached]
    for name in ("ttft_s", "total_s", "decode_tokens_per_s", "prompt_tokens", "output_tokens"):
        timed = whole if name in ("ttft_s", "total_s") else rows
        values = [row[name] for row in timed if row.get(name) is not None]
        figures[f"{name}_median"] = statistics.median(values) if values else None
    if cached:
        found = sum(row["stats"]["cached_tokens"] for row in cached)
        figures["cached_share"] = found / sum(row["prompt_tokens"] for row in rows if row["prompt_tokens"])
        figures["ttft_s_cached_median"] = statistics.median(row["ttft_s"] for row in cached)
    for name in ("drafted_tokens", "accepted_tokens"):
        values = [row["stats"][name] for row in rows if name in row.get("stats", {})]
        figures[name] = sum(values) if values else None
    engine = math.fsum(row["total_s"] or 0.0 for row in rows)
    harness = math.fsum(row["harness_s"] for row in rows)
    figures |= {"engine_s": engine, "harness_s": harness, "harness_share": harness / engine if engine else None}
    return figures

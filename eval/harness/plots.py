"""Pictures of the scoreboard: depth × length heat maps, score against time, scores and times against length."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from eval.harness.engines import folder_name

SHOWN = "official_v1"
Cell = dict[str, Any]
Picture = tuple[Path, str]


def draw(cells: Sequence[Cell], folder: Path) -> list[Picture]:
    """Draw what the cells allow; returns the files with their captions."""
    import matplotlib

    matplotlib.use("Agg")
    pictures = [*_score_against_speed(cells, folder)]
    pictures += _against_length(cells, folder, _score, f"{SHOWN} score, %", "score", errors=_stderr)
    pictures += _against_length(cells, folder, _median("ttft_s"), "TTFT, s", "ttft")
    pictures += _against_length(cells, folder, _median("decode_tokens_per_s"), "decode, tokens/s", "decode")
    for task in dict.fromkeys(cell["task"] for cell in cells):
        pictures += _heat_maps([cell for cell in cells if cell["task"] == task], task, folder)
    return pictures


def _heat_maps(cells: Sequence[Cell], task: str, folder: Path) -> list[Picture]:
    """Depth × length, one panel an engine, for tasks that have depths and generated lengths."""
    cells = [cell for cell in cells if cell["length"] and "depth" in cell["groups"]]
    if not cells:
        return []
    from matplotlib import pyplot

    engines = list(dict.fromkeys(cell["engine"] for cell in cells))
    lengths = sorted({cell["length"] for cell in cells})
    depths = sorted({float(depth) for cell in cells for depth in cell["groups"]["depth"]})
    figure, axes = pyplot.subplots(1, len(engines), figsize=(2.8 * len(engines) + 1, 2.8), squeeze=False, sharey=True)
    for axis, engine in zip(axes[0], engines, strict=True):
        grid = [[float("nan")] * len(lengths) for _ in depths]
        for cell in (c for c in cells if c["engine"] == engine):
            for depth, scores in cell["groups"]["depth"].items():
                grid[depths.index(float(depth))][lengths.index(cell["length"])] = scores[SHOWN]["score"]
        image = axis.imshow(grid, vmin=0, vmax=100, cmap="RdYlGn", aspect="auto", origin="upper")
        axis.set_title(engine, fontsize=10)
        axis.set_xticks(range(len(lengths)), [str(length) for length in lengths], fontsize=8)
        axis.set_yticks(range(len(depths)), [f"{100 * depth:.0f}%" for depth in depths], fontsize=8)
        axis.set_xlabel("tokens", fontsize=8)
    axes[0][0].set_ylabel("depth of the answer", fontsize=8)
    figure.colorbar(image, ax=axes, label="score, %")
    return [save(figure, folder / f"depth_{folder_name(task)}.png", f"{task}: {SHOWN} score by depth and length")]


def _score_against_speed(cells: Sequence[Cell], folder: Path) -> list[Picture]:
    """A point an engine and length: mean score over the tasks, mean of the median end-to-end times.

    A ring has whoever nobody beats in one without losing in the other, at his length (the Pareto front).
    """
    from matplotlib import pyplot
    from matplotlib.ticker import LogLocator, StrMethodFormatter

    points: dict[str, dict[int, list[Cell]]] = defaultdict(lambda: defaultdict(list))
    for cell in cells:
        if cell["speed"]["total_s_median"] is not None:
            points[cell["engine"]][cell["length"] or 0].append(cell)
    if not points:
        return []
    figure, axis = pyplot.subplots(figsize=(6.5, 4))
    placed: dict[int, list[tuple[float, float]]] = defaultdict(list)
    for engine, by_length in points.items():
        lengths = sorted(by_length)
        times = [_mean([c["speed"]["total_s_median"] for c in by_length[length]]) for length in lengths]
        scores = [_mean([_score(c) for c in by_length[length]]) for length in lengths]
        axis.plot(times, scores, marker="o", label=engine)
        for length, point in zip(lengths, zip(times, scores, strict=True), strict=True):
            placed[length].append(point)
        for x, y, length in zip(times, scores, lengths, strict=True):
            axis.annotate(_short(length), (x, y), fontsize=7, xytext=(3, 3), textcoords="offset points")
    best = [point for alike in placed.values() for point in front(alike)]
    x_best, y_best = zip(*best, strict=True)
    axis.scatter(x_best, y_best, s=110, facecolors="none", edgecolors="black", label="Pareto front")
    axis.set(
        xlabel="end to end, s (median, mean of the tasks)", ylabel=f"{SHOWN} score, %", xscale="log", ylim=(-5, 105)
    )
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.minorticks_off()
    axis.legend(fontsize=8)
    axis.grid(alpha=0.3)
    return [save(figure, folder / "score_speed.png", "Score against end-to-end time, by engine and length")]


def front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Of (time, score), those that no other is as good as in both and better in one."""
    return [
        (time, score)
        for time, score in points
        if not any(t <= time and s >= score and (t, s) != (time, score) for t, s in points)
    ]


def _against_length(
    cells: Sequence[Cell],
    folder: Path,
    value: Callable[[Cell], float | None],
    label: str,
    stem: str,
    errors: Callable[[Cell], float] | None = None,
) -> list[Picture]:
    """One line an engine: the mean over the tasks, of times on a scale of powers; of scores with standard errors."""
    from matplotlib import pyplot

    shown: dict[str, dict[int, list[Cell]]] = defaultdict(lambda: defaultdict(list))
    for cell in cells:
        if cell["length"] and value(cell) is not None:
            shown[cell["engine"]][cell["length"]].append(cell)
    if not shown:
        return []
    figure, axis = pyplot.subplots(figsize=(6.5, 4))
    for engine, by_length in shown.items():
        lengths = sorted(by_length)
        means = [_mean([value(cell) for cell in by_length[length]]) for length in lengths]  # type: ignore[misc]
        bars = (
            [math.hypot(*map(errors, cells)) / len(cells) for _, cells in sorted(by_length.items())] if errors else None
        )
        axis.errorbar(lengths, means, yerr=bars, marker="o", capsize=3, label=engine)
    ticks = sorted({length for by_length in shown.values() for length in by_length})
    scale: dict[str, Any] = {"ylim": (-5, 105)} if errors else {"yscale": "log"}
    axis.set(xlabel="tokens of prompt and answer", ylabel=label, xscale="log", **scale)
    axis.set_xticks(ticks, [_short(length) for length in ticks])
    axis.minorticks_off()
    axis.legend(fontsize=8)
    axis.grid(alpha=0.3)
    return [save(figure, folder / f"{stem}_length.png", f"{label} against length, by engine")]


def _score(cell: Cell) -> float:
    return float(cell["scores"][SHOWN]["score"])


def _stderr(cell: Cell) -> float:
    return float(cell["scores"][SHOWN]["stderr"])


def _median(name: str) -> Callable[[Cell], float | None]:
    return lambda cell: cell["speed"][f"{name}_median"]


def save(figure: Any, path: Path, caption: str) -> Picture:
    """Write a figure of matplotlib's and close it."""
    from matplotlib import pyplot

    figure.savefig(path, dpi=110, bbox_inches="tight", metadata={"Software": None})
    pyplot.close(figure)
    return path, caption


def _short(length: int) -> str:
    return f"{length // 1024}K" if length >= 1024 else str(length or "whole")


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)

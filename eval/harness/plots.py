"""Pictures of the scoreboard: depth × length heat maps, score against speed, times against length."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
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
    pictures += _against_length(cells, folder, "ttft_s_median", "TTFT, s", "ttft")
    pictures += _against_length(cells, folder, "decode_tokens_per_s_median", "decode, tokens/s", "decode")
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
    """A point an engine and length: mean score over the tasks, mean of the median end-to-end times."""
    from matplotlib import pyplot
    from matplotlib.ticker import LogLocator, StrMethodFormatter

    points: dict[str, dict[int, list[Cell]]] = defaultdict(lambda: defaultdict(list))
    for cell in cells:
        if cell["speed"]["total_s_median"] is not None:
            points[cell["engine"]][cell["length"] or 0].append(cell)
    if not points:
        return []
    figure, axis = pyplot.subplots(figsize=(6.5, 4))
    for engine, by_length in points.items():
        lengths = sorted(by_length)
        times = [_mean([c["speed"]["total_s_median"] for c in by_length[length]]) for length in lengths]
        scores = [_mean([c["scores"][SHOWN]["score"] for c in by_length[length]]) for length in lengths]
        axis.plot(times, scores, marker="o", label=engine)
        for x, y, length in zip(times, scores, lengths, strict=True):
            axis.annotate(_short(length), (x, y), fontsize=7, xytext=(3, 3), textcoords="offset points")
    axis.set(
        xlabel="end to end, s (median, mean of the tasks)", ylabel=f"{SHOWN} score, %", xscale="log", ylim=(-5, 105)
    )
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.minorticks_off()
    axis.legend(fontsize=8)
    axis.grid(alpha=0.3)
    return [save(figure, folder / "score_speed.png", "Score against end-to-end time, by engine and length")]


def _against_length(cells: Sequence[Cell], folder: Path, figure_name: str, label: str, stem: str) -> list[Picture]:
    """One line an engine: the mean over the tasks of a median."""
    from matplotlib import pyplot

    values: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for cell in cells:
        if cell["length"] and cell["speed"][figure_name] is not None:
            values[cell["engine"]][cell["length"]].append(cell["speed"][figure_name])
    if not values:
        return []
    figure, axis = pyplot.subplots(figsize=(6.5, 4))
    for engine, by_length in values.items():
        lengths = sorted(by_length)
        axis.plot(lengths, [_mean(by_length[length]) for length in lengths], marker="o", label=engine)
    ticks = sorted({length for by_length in values.values() for length in by_length})
    axis.set(xlabel="tokens of prompt and answer", ylabel=label, xscale="log", yscale="log")
    axis.set_xticks(ticks, [_short(length) for length in ticks])
    axis.minorticks_off()
    axis.legend(fontsize=8)
    axis.grid(alpha=0.3)
    return [save(figure, folder / f"{stem}_length.png", f"{label} against length, by engine")]


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

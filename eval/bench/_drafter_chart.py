"""The drafters' figures as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

PLAIN = "none"


def chart(figures: dict[str, Any], path: Path) -> None:
    """Draw speed-up, accepted length and acceptance rate of every drafter, a bar a context, for the batch-1 cells of
    each workload and temperature."""
    cells = [
        cell
        for cell in figures["cells"]
        if cell["batch"] == 1 and cell["dtype"] != "float64" and cell["drafter"] != PLAIN
    ]
    groups = list(dict.fromkeys((cell["workload"], cell["temperature"]) for cell in cells))
    contexts = sorted({cell["context"] for cell in cells})
    names = list(dict.fromkeys(cell["drafter"] for cell in cells))
    shown = (
        ("speedup", "speed-up over plain"),
        ("accepted_length", "accepted length"),
        ("acceptance_rate", "acceptance rate"),
    )
    size = (5 * len(shown), 1 + 0.4 * len(names) * len(groups))
    figure, axes = pyplot.subplots(len(groups), len(shown), figsize=size, squeeze=False, sharey=True)
    for row, group in zip(axes, groups, strict=True):
        for axis, (key, label) in zip(row, shown, strict=True):
            for i, context in enumerate(contexts):
                found = {
                    cell["drafter"]: cell[key]
                    for cell in cells
                    if (cell["workload"], cell["temperature"]) == group and cell["context"] == context
                }
                at = [n + (i - (len(contexts) - 1) / 2) * 0.8 / len(contexts) for n in range(len(names))]
                axis.barh(at, [found.get(n, 0) for n in names], 0.8 / len(contexts), label=f"{context} tokens")
            axis.axvline(1.0, color="black", linewidth=0.6)
            axis.set_yticks(range(len(names)), names, fontsize=8)
            axis.set_xlabel(label, fontsize=8)
            axis.set_title(f"{group[0]}, temperature {group[1]:g}", fontsize=9)
    axes[0][0].invert_yaxis()  # shared by all
    axes[0][0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)

"""The report of a folder of runs: tables and pictures, as Markdown and as one HTML page."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from eval.figures import write_atomically
from eval.harness import plots
from eval.harness.report import Table, markdown, page

Row = dict[str, Any]
SEARCH = ("hit@1", "hit@5", "mrr@10", "document@1", "document@5")
ANSWERS = (
    "right",
    "sentence_hit",
    "exact_match",
    "f1",
    "citation_precision",
    "citation_recall",
    "gold_in_evidence",
    "false_refusal",
    "honest",
    "misled",
    "loop",
    "cut",
    "uncited",
)
_DRAWN = ("right", "sentence_hit", "citation_precision", "citation_recall", "false_refusal", "honest", "loop")


def report(folder: Path) -> list[Path]:
    """Write report.md, report.html and the pictures of the folder's results.json."""
    found = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    pictures = [*_pictures(found, folder)]
    told = "Questions over documents", _facts(found), _tables(found), pictures
    written = [folder / "report.md", folder / "report.html"]
    for path, write in zip(written, (markdown, page), strict=True):
        write_atomically(path, write(*told))
    return [*written, *(path for path, _ in pictures)]


def lines(figures: Row) -> Iterator[str]:
    """The figures of a run for a terminal."""
    for row in figures["retrieval"]:
        yield f"{row['method']:28} n {row['n']:4}  " + _told(row, SEARCH)
    for row in figures["answers"]:
        yield f"{row['data']} {row['model']} {row['mode']}: n {row['n']}, failed {row['failed']}, rule {row['rule']}"
        yield "  " + _told(row, ANSWERS)


def _told(row: Row, names: Sequence[str]) -> str:
    return ", ".join(f"{name} {_cell(row[name])}" for name in names if row[name]["n"])


def _cell(figure: Row) -> str:
    return f"{figure['score']:.1f} ± {figure['stderr']:.1f}" if figure["n"] else "–"


def _facts(found: Row) -> list[str]:
    machine = found["machine"]
    return [
        f"- Last command: `{found['command']}`; code `{found['git'] or 'unknown'}`",
        f"- Machine: {machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads",
        "- In percent ± standard error; n is the number of questions. What each figure is: eval/qa/README.md.",
    ]


def _tables(found: Row) -> list[Table]:
    searches, answers = found["retrieval"], found["answers"]
    tables = [
        Table(
            f"Search: {data}",
            ("method", "n", *SEARCH),
            [
                [row["method"], str(row["n"]), *(_cell(row[name]) for name in SEARCH)]
                for row in searches
                if row["data"] == data
            ],
        )
        for data in _values(searches, "data")
    ]
    for data in _values(answers, "data"):
        rows = [row for row in answers if row["data"] == data]
        columns = [f"{row['model']} {row['mode']}" for row in rows]
        cells = [[name, *(_cell(row[name]) for row in rows)] for name in ANSWERS]
        counts = [["questions (failed)", *(f"{row['n']} ({row['failed']})" for row in rows)]]
        tables.append(Table(f"Answers: {data}", ("figure", *columns), [*counts, *cells, *_kinds(rows)]))
    return tables


def _kinds(rows: Sequence[Row]) -> list[list[str]]:
    """Right answers by kind of question."""
    kinds = sorted({kind for row in rows for kind in row["kinds"]})
    none = {"n": 0}
    return [
        [f"right: {kind} ({_n(rows, kind)})", *(_cell(row["kinds"].get(kind, none)) for row in rows)] for kind in kinds
    ]


def _n(rows: Sequence[Row], kind: str) -> int:
    return max(row["kinds"].get(kind, {"n": 0})["n"] for row in rows)


def _pictures(found: Row, folder: Path) -> Iterator[plots.Picture]:
    import matplotlib

    matplotlib.use("Agg")
    for data in _values(found["retrieval"], "data"):
        rows = [row for row in found["retrieval"] if row["data"] == data]
        bars = {row["method"]: row for row in rows}
        yield _bars(bars, SEARCH[:3], folder / f"search_{data}.png", f"{data}: the gold sentence found, by method")
    for data in _values(found["answers"], "data"):
        rows = [row for row in found["answers"] if row["data"] == data]
        bars = {f"{row['model']} {row['mode']}": row for row in rows}
        yield _bars(bars, _DRAWN, folder / f"answers_{data}.png", f"{data}: answers, by model and mode")


def _bars(rows: dict[str, Row], names: Sequence[str], path: Path, caption: str) -> plots.Picture:
    """Groups of bars with their standard errors, one group a figure."""
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(1.5 + 1.4 * len(names), 3.4))
    width = 0.8 / len(rows)
    for number, (label, row) in enumerate(rows.items()):
        places = [at + (number - (len(rows) - 1) / 2) * width for at in range(len(names))]
        errors = [row[name]["stderr"] for name in names]
        axis.bar(places, [row[name]["score"] for name in names], width, yerr=errors, label=label, capsize=2)
    axis.set_xticks(range(len(names)), [name.replace("_", "\n") for name in names], fontsize=8)
    axis.set(ylabel="%", ylim=(0, 105))
    axis.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))
    axis.grid(axis="y", alpha=0.3)
    return plots.save(figure, path, caption)


def _values(rows: Sequence[Row], name: str) -> list[str]:
    return list(dict.fromkeys(row[name] for row in rows))

"""`folio eval report`: the scoreboard of a folder of results as Markdown, CSV, PNG and one static HTML page.

Of several models, each with its folder in one, an engine is called MODEL: ENGINE.
"""

from __future__ import annotations

import base64
import csv
import html
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from eval.figures import write_atomically
from eval.harness import plots
from eval.harness.store import load_summaries
from eval.scoring import SCORERS

COLUMNS = (
    "task",
    "length",
    "engine",
    "n",
    "failed",
    "cut",
    *(f"{scorer}{part}" for scorer in SCORERS for part in ("", "_stderr")),
    "ttft_s",
    "decode_tokens_per_s",
    "total_s",
    "prompt_tokens",
    "accepted_share",
    "harness_share",
)
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; color: #1a1a1a; }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .7rem; border-bottom: 1px solid #ddd; text-align: right; }
th:first-child, td:first-child, th:nth-child(3), td:nth-child(3) { text-align: left; }
thead th { border-bottom: 2px solid #333; } img { max-width: 100%; } .wide { overflow-x: auto; }
figure { margin: 1.5rem 0; } figcaption { color: #555; } code { font-size: 90%; overflow-wrap: anywhere; }
@media (prefers-color-scheme: dark) { body { background: #161616; color: #e6e6e6; } td { border-color: #333; }
  img { background: #fff; } figcaption { color: #aaa; } }
"""


class Table(NamedTuple):
    """Cells as they are shown."""

    title: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]


def report(folder: Path) -> list[Path]:
    """Write report.md, report.csv, PNG pictures and report.html into the folder; returns what was written.

    Raises:
        EvalError: the folder holds no results.json, and no folders that do.
    """
    summaries = load_summaries(folder)
    cells = [
        {**cell, "engine": f"{name}: {cell['engine']}" if name else cell["engine"]}
        for name, summary in summaries.items()
        for cell in summary["cells"]
    ]
    rows = [row_of(cell) for cell in _ordered(cells)]
    pictures = plots.draw(cells, folder)
    written = [folder / "report.csv", folder / "report.md", folder / "report.html"]
    write_atomically(written[0], _csv(rows))
    told = "Scoreboard", _facts(summaries), _tables(rows), pictures
    write_atomically(written[1], markdown(*told))
    write_atomically(written[2], page(*told))
    return [*written, *(path for path, _ in pictures)]


def row_of(cell: dict[str, Any]) -> dict[str, Any]:
    """One line of the scoreboard."""
    speed = cell["speed"]
    row = {name: cell[name] for name in ("task", "length", "engine", "n", "failed", "cut")}
    for scorer in SCORERS:
        row[scorer] = cell["scores"][scorer]["score"]
        row[f"{scorer}_stderr"] = cell["scores"][scorer]["stderr"]
    for name in ("ttft_s", "decode_tokens_per_s", "total_s", "prompt_tokens"):
        row[name] = speed[f"{name}_median"]
    drafted = speed["drafted_tokens"]
    row["accepted_share"] = speed["accepted_tokens"] / drafted if drafted else None
    row["harness_share"] = speed["harness_share"]
    return row


def markdown(title: str, facts: Sequence[str], tables: Sequence[Table], pictures: Sequence[plots.Picture]) -> str:
    """A report for reading in a repository."""
    lines = [f"# {title}", "", *facts, ""]
    for table in tables:
        lines += [f"## {table.title}", "", "| " + " | ".join(table.heads) + " |", "|" + "---|" * len(table.heads)]
        lines += ["| " + " | ".join(cells) + " |" for cells in table.rows]
        lines.append("")
    lines += [f"![{caption}]({path.name})\n" for path, caption in pictures]
    return "\n".join(lines).rstrip() + "\n"


def page(title: str, facts: Sequence[str], tables: Sequence[Table], pictures: Sequence[plots.Picture]) -> str:
    """The same as one HTML page with its pictures inside; needs no network and no script."""
    parts = [
        "<!doctype html>",
        f'<html lang="en"><head><meta charset="utf-8"><title>Folio: {html.escape(title)}</title>',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<style>{STYLE}</style></head><body><h1>{html.escape(title)}</h1><ul>",
        *(f"<li>{_inline(fact.removeprefix('- '))}</li>" for fact in facts),
        "</ul>",
    ]
    for table in tables:
        parts.append(f'<h2>{html.escape(table.title)}</h2><div class="wide"><table><thead><tr>')
        parts += [f"<th>{head}</th>" for head in table.heads]
        parts.append("</tr></thead><tbody>")
        for cells in table.rows:
            parts.append("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells) + "</tr>")
        parts.append("</tbody></table></div>")
    for path, caption in pictures:
        data = base64.b64encode(path.read_bytes()).decode("ascii")
        text = html.escape(caption)
        parts.append(f'<figure><img alt="{text}" src="data:image/png;base64,{data}"><figcaption>{text}</figcaption>')
        parts.append("</figure>")
    return "\n".join([*parts, "</body></html>"]) + "\n"


def _tables(rows: Sequence[dict[str, Any]]) -> list[Table]:
    """One a task."""
    tasks = dict.fromkeys(row["task"] for row in rows)
    return [Table(task, HEADS, [cells_of(row) for row in rows if row["task"] == task]) for task in tasks]


HEADS = (
    "engine",
    "length",
    "n (failed)",
    *SCORERS,
    "TTFT s",
    "decode tok/s",
    "end to end s",
    "accepted",
)


def cells_of(row: dict[str, Any]) -> list[str]:
    return [
        row["engine"],
        str(row["length"] or "whole"),
        f"{row['n']} ({row['failed']})",
        *(f"{row[scorer]:.2f} ± {row[f'{scorer}_stderr']:.2f}" for scorer in SCORERS),
        _number(row["ttft_s"], 2),
        _number(row["decode_tokens_per_s"], 1),
        _number(row["total_s"], 2),
        _number(row["accepted_share"], 2),
    ]


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _facts(named: Mapping[str, dict[str, Any]]) -> list[str]:
    """What the figures were made with; where runs differ in it, of each."""
    summaries = list(named.values())
    facts = list(dict.fromkeys(fact for summary in summaries for fact in _made_with(summary)))
    facts.append(
        "- Scores in percent ± standard error; times are medians. Tasks named -style are generated, not the originals."
    )
    cells = [cell for summary in summaries for cell in summary["cells"]]
    engine, harness = (sum(c["speed"].get(key, 0.0) for c in cells) for key in ("engine_s", "harness_s"))
    if engine:
        facts.append(
            f"- Harness (making and reading examples, prompts, scores, files): {100 * harness / engine:.2f}% of the "
            f"{engine:.0f} s that the engines took."
        )
    failed = sum(cell["failed"] for cell in cells)
    if failed:
        facts.append(f"- {failed} examples failed; they count as 0, and their rows say why.")
    for name, summary in named.items():
        of = f" of `{name}`" if name else ""
        facts += [f"- Left out{of}: `{task}` {lacking}." for task, lacking in summary.get("left_out", {}).items()]
    if problems := sum(len(summary["problems"]) for summary in summaries):
        facts.append(f"- {problems} lines of the data could not be used; results.json names them.")
    return facts


def _made_with(summary: dict[str, Any]) -> list[str]:
    machine, arguments = summary["machine"], summary["arguments"]
    shared = ", ".join(f"{key} {value}" for key, value in arguments.items() if value is not None)
    return [
        f"- Command: `{summary['command']}`",
        f"- Code: `{summary['git'] or 'unknown'}`; arguments: {shared}",
        f"- Machine: {machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads; "
        + ", ".join(f"{name} {version}" for name, version in machine["libraries"].items()),
    ]


def _inline(text: str) -> str:
    """HTML of a line whose only Markdown is `code`."""
    pieces = html.escape(text).split("`")
    return "".join(f"<code>{piece}</code>" if i % 2 else piece for i, piece in enumerate(pieces))


def _csv(rows: Sequence[dict[str, Any]]) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def _ordered(cells: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    engines = list(dict.fromkeys(cell["engine"] for cell in cells))
    tasks = list(dict.fromkeys(cell["task"] for cell in cells))
    return sorted(cells, key=lambda c: (tasks.index(c["task"]), c["length"] or 0, engines.index(c["engine"])))

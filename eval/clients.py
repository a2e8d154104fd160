"""The table of the programs that talk to Folio: `python -m eval.clients`, from what `pytest -m clients` found."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from eval.figures import RESULTS


def table(clients: Mapping[str, Mapping[str, Any]]) -> str:
    """A row for each client: its version and what of it ran, in Markdown; what failed is named."""
    rows = ["| client | version | what runs |", "|---|---|---|"]
    for name, entry in clients.items():
        passed = [what for what, outcome in entry["shown"].items() if outcome == "passed"]
        failed = [what for what, outcome in entry["shown"].items() if outcome == "failed"]
        shown = "; ".join(passed) + (f" (fails: {'; '.join(failed)})" if failed else "")
        rows.append(f"| {name} | {entry['version']} | {shown} |")
    return "\n".join(rows)


if __name__ == "__main__":
    print(table(json.loads((RESULTS / "clients.json").read_text())["figures"]))

"""The figures that README.md quotes are of this code, but for changes that are told (eval/results/measures.yaml)."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "eval" / "results"
MEASURES: dict[str, dict[str, list[str]]] = yaml.safe_load((RESULTS / "measures.yaml").read_text(encoding="utf-8"))
QUOTED = sorted(set(re.findall(r"eval/results/([\w/-]+)\.json", (ROOT / "README.md").read_text(encoding="utf-8"))))


def git(*arguments: str) -> str:
    found = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False)
    return found.stdout.strip() if found.returncode == 0 else ""


def commits(record: Any) -> Iterator[str]:
    """Those that a result's rows were measured at."""
    if isinstance(record, dict):
        for key, value in record.items():
            if key == "git" and isinstance(value, str):
                yield value.rstrip("+")
            else:
                yield from commits(value)
    elif isinstance(record, list):
        for value in record:
            yield from commits(value)


def oldest(name: str) -> str | None:
    found = set(commits(json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))))
    for commit in found:
        assert git("cat-file", "-t", commit) == "commit", f"{name}.json was measured at {commit}, which is not here"
    return max(found, key=lambda commit: int(git("rev-list", "--count", f"{commit}..HEAD") or 0), default=None)


def test_every_result_that_the_readme_quotes_says_what_it_measures() -> None:
    assert not [name for name in QUOTED if name not in MEASURES]
    assert not [name for name in MEASURES if name not in QUOTED], "no longer quoted"
    for name, measure in MEASURES.items():
        assert all((ROOT / path).exists() for path in measure["of"]), name
        assert set(measure.get("older_than", [])) <= set(measure["of"]), name


@pytest.mark.skipif(git("rev-parse", "--is-shallow-repository") != "false", reason="the history is not here")
@pytest.mark.parametrize("name", QUOTED)
def test_a_quoted_result_is_no_older_than_is_told(name: str) -> None:
    commit, measure = oldest(name), MEASURES[name]
    if commit is None:
        assert measure.get("older_than", []) == measure["of"], (
            f"{name}.json names no commit: take it for older than all"
        )
        return
    changed = [path for path in measure["of"] if git("rev-list", "-n1", f"{commit}..HEAD", "--", path)]
    told = measure.get("older_than", [])
    assert [path for path in changed if path not in told] == [], (
        f"{name}.json was measured at {commit[:8]}, before these changed: measure it anew, or tell it in "
        "eval/results/measures.yaml"
    )
    assert [path for path in told if path not in changed] == [], f"{name}.json is newer than measures.yaml says"

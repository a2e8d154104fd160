"""What SECURITY.md promises is held by tests that it names, and the table of what "lossless" means likewise."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TEST = re.compile(r"`(tests/[\w/]+\.py)(?:::(\w+))?`")


@cache
def named_in(path: str) -> frozenset[str]:
    """The functions of a file, and what is assigned (the state machines of hypothesis)."""
    names: set[str] = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names.update(target.id for target in node.targets if isinstance(target, ast.Name))
    return frozenset(names)


def rows(page: str, heading: str) -> list[list[str]]:
    """The cells of each row of the table below a heading."""
    section = (ROOT / page).read_text(encoding="utf-8").partition(f"{heading}\n")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")][2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


THREATS = rows("SECURITY.md", "## Threats and answers")
LOSSLESS = rows("docs/drafting.md", "## What is guaranteed")


def test_the_tables_are_read() -> None:
    assert len(THREATS) >= 20
    assert len(LOSSLESS) >= 5


@pytest.mark.parametrize("row", THREATS, ids=lambda row: re.sub(r"\W+", "-", row[0])[:60])
def test_every_threat_names_a_test_that_is_there(row: list[str]) -> None:
    named = TEST.findall(row[-1])
    assert named, "no test is named"
    for path, test in named:
        assert (ROOT / path).is_file(), path
        assert any(name.startswith(("test_", "Test")) for name in named_in(path))
        assert not test or test in named_in(path), f"{path} has no {test}"


@pytest.mark.parametrize("row", LOSSLESS, ids=lambda row: re.sub(r"\W+", "-", row[0])[:60])
def test_every_promise_of_numbers_names_one(row: list[str]) -> None:
    named = TEST.findall(row[-1])
    assert named or "measured:" in row[-1]
    for path, test in named:
        assert test in named_in(path), f"{path} has no {test}"

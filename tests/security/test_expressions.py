"""Every regular expression over texts of strangers takes time in proportion to the text."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
import time
from collections.abc import Iterator
from functools import cache
from types import ModuleType
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

PACKAGES = (
    *("retrieval", "service.answering", "service.reader"),
    *("service.conversations", "service.receipts", "service.tables", "service.watches"),
)
OF_OUR_OWN: set[str] = {
    "retrieval.parsing.sentences._ABBREVIATION",  # looked for in the last 12 characters
}
"""Expressions that never see more than a few characters, or no text of a stranger's."""
PIECES = (
    " ", "\n", "\r\n", "\t", "\x0b", "a", "A", "1", ".", ",", "-", "_", "*", "#", "`", "```", "~~~", '"', "'", "(",
    "[", "<", ">", "|", "=", ";", ":", "\\", "/", "&", "é", "日", "\u0301", "\ufffd", "<!--", "<!---->", "<a ",
    "<a>", "</a", "<td", "<script>", "<h1>", "<meta ", "charset", "A.", "1.", "1,", "1-", "1 ", "[1]", "[D1, ",
    "[1–", "a-", "a’", "- ", "* ", "1) ", " #", "# ", "\\'", "\\u1", "{\\", "<row ", '<col hidden="1" ', '<c r="',
    "<mergeCell ", "| ", ":-", "; ", "—", "not ", "the ", "of ", "no ", "does not ", "I can", "“", "New ", "de ",
    "and ", "as ",
)  # fmt: skip
LENGTHS = (*range(24, 193, 24), 400, 1600, 6400)
"""Short ones first, and close to one another: an exponential expression does not come back from a long one."""
SECONDS = 0.1
"""A backtracking expression takes minutes over what others read in a millisecond."""


def modules() -> Iterator[ModuleType]:
    for package in PACKAGES:
        root = importlib.import_module(package)
        yield root
        for found in pkgutil.walk_packages(root.__path__, f"{package}."):
            if "migrations" not in found.name and not found.name.endswith(("worker", "__main__")):
                yield importlib.import_module(found.name)


def patterns(value: Any, name: str, depth: int = 0) -> Iterator[tuple[str, re.Pattern[Any]]]:
    """Of a module's value, and of what it holds."""
    if isinstance(value, re.Pattern):
        yield name, value
    elif depth < 3 and isinstance(value, list | tuple | set | frozenset):
        for number, one in enumerate(value):
            yield from patterns(one, f"{name}[{number}]", depth + 1)
    elif depth < 3 and isinstance(value, dict):
        for key, one in value.items():
            yield from patterns(one, f"{name}[{key!r}]", depth + 1)
    elif depth < 3 and type(value).__module__.startswith(PACKAGES) and hasattr(value, "__dict__"):
        for key, one in vars(value).items():
            yield from patterns(one, f"{name}.{key}", depth + 1)


def in_calls(module: ModuleType) -> Iterator[tuple[str, re.Pattern[Any]]]:
    """Of calls such as ``re.search(r"…", text)``."""
    for node in ast.walk(ast.parse(inspect.getsource(module))):
        match node:
            case ast.Call(ast.Attribute(ast.Name("re"), how), [ast.Constant(text), *_]) if how != "compile":
                yield f"{module.__name__}:{node.lineno}", re.compile(text)


def every_pattern() -> dict[str, re.Pattern[Any]]:
    found: dict[str, re.Pattern[Any]] = {}
    for module in modules():
        for place, pattern in in_calls(module):
            found.setdefault(place, pattern)
        for name, value in vars(module).items():
            for place, pattern in patterns(value, f"{module.__name__}.{name}"):
                if pattern not in found.values() and place not in OF_OUR_OWN:
                    found[place] = pattern
    return found


EVERY = every_pattern()


@cache
def uses(module: str) -> dict[str, set[str]]:
    """Name of an expression → the methods that the module calls of it."""
    found: dict[str, set[str]] = {}
    call = r"(\w+)\.(finditer|findall|search|match|fullmatch|subn?|split)\("
    for name, method in re.findall(call, inspect.getsource(importlib.import_module(module))):
        found.setdefault(name, set()).add(method)
    return found


@cache
def is_anchored(name: str) -> bool:
    """Whether the expression is only ever tried at one place of a text: by its own module, or else by any."""
    last = re.split(r"[.:]", name.rpartition("[")[0] if name.endswith("]") else name)[-1]
    own = next((one.__name__ for one in modules() if name.startswith(f"{one.__name__}.{last}")), None)
    how = uses(own).get(last, set()) if own is not None else set()
    how = how or set[str]().union(*(uses(one.__name__).get(last, set()) for one in modules()))
    return bool(how) and how <= {"match", "fullmatch"}


def too_long(pattern: re.Pattern[Any], begin: str, piece: str, end: str, anchored: bool = False) -> int | None:
    """Characters of the first text, of growing ones, that takes too long."""
    for length in LENGTHS:
        text: Any = begin + piece * (length // len(piece)) + end
        if isinstance(pattern.pattern, bytes):
            text = text.encode()
        began = time.process_time()
        if anchored:
            pattern.match(text)
            pattern.fullmatch(text)
        else:
            for _ in pattern.finditer(text):
                pass
        if time.process_time() - began > SECONDS:
            return length
    return None


def test_the_expressions_are_found() -> None:
    assert len(EVERY) > 80
    assert "retrieval.parsing.sniff._HTML_TAG" in EVERY
    assert is_anchored("retrieval.parsing.sniff._HTML_TAG")
    assert not is_anchored("retrieval.parsing.markdown._TAG")


def test_a_backtracking_expression_is_found() -> None:
    assert too_long(re.compile(r"(?:<!--.*?-->\s*)*<html"), "", "<!---->", "")
    assert too_long(re.compile("(a+)+b"), "", "a", "")


@pytest.mark.parametrize("name", sorted(EVERY))
def test_an_expression_is_linear(name: str) -> None:
    for piece in PIECES:
        for begin, end in (("", ""), ("# ", "\x0bx")):
            assert too_long(EVERY[name], begin, piece, end, is_anchored(name)) is None, (begin, piece, end)


@pytest.mark.slow
@settings(max_examples=3000, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    name=st.sampled_from(sorted(EVERY)),
    begin=st.lists(st.sampled_from(PIECES), max_size=3),
    piece=st.lists(st.sampled_from(PIECES), min_size=1, max_size=4),
    end=st.lists(st.sampled_from(PIECES), max_size=2),
)
def test_an_expression_is_linear_over_anything(name: str, begin: list[str], piece: list[str], end: list[str]) -> None:
    text = "".join(begin), "".join(piece), "".join(end)
    assert too_long(EVERY[name], *text, is_anchored(name)) is None

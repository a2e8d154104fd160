"""Grammars that would stall or end the process that compiles them: refused, by a child that is replaced."""

from __future__ import annotations

import json
import os
import signal
import threading
import time

import pytest

from service.engine.sampling import grammars
from service.engine.sampling.grammars import Constraint, inspect
from service.errors import InvalidRequest


def rules(count: int) -> Constraint:
    """A grammar of so many rules, each of which needs the next."""
    lines = [f'r{i}: "x" r{i + 1} | "y"' for i in range(count)]
    return Constraint("grammar", "\n".join(["start: r0", *lines, f'r{count}: "z"']))


def chain(links: int) -> Constraint:
    """A schema whose definitions refer each to the next."""
    definitions = {f"a{i}": {"$ref": f"#/$defs/a{i + 1}"} for i in range(links)} | {f"a{links}": {"type": "string"}}
    return Constraint("json_schema", json.dumps({"$ref": "#/$defs/a0", "$defs": definitions}))


def test_an_ordinary_one_is_compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    inspector = grammars._Inspector()
    monkeypatch.setattr(grammars, "_inspector", inspector)
    asked = []
    ask = inspector._ask
    monkeypatch.setattr(inspector, "_ask", lambda grammar: (asked.append(grammar), ask(grammar))[1])
    for _ in range(3):
        assert inspect(rules(3))
    assert len(asked) == 1


@pytest.mark.parametrize(
    "hostile",
    [
        rules(5_000),  # overflows a stack of 8 MiB
        chain(20_000),
        Constraint("json_schema", "[" * 100_000 + "]" * 100_000),
        Constraint("json_schema", '{"type": "array", "items": ' * 9_000 + "{}" + "}" * 9_000),
        Constraint("regex", "(" * 60_000 + "a" + ")" * 60_000),
        Constraint("grammar", "start: " + "(" * 60_000 + '"a"' + ")" * 60_000),
        Constraint("grammar", "start: " + '"a"?' * 60_000),
        Constraint("regex", "a" * (grammars.MOST_BYTES + 1)),
    ],
    ids=["rules", "chain", "brackets", "nested", "parentheses", "groups", "optional", "long"],
)
def test_a_hostile_one_costs_seconds_and_no_process(hostile: Constraint) -> None:
    began = time.monotonic()
    with pytest.raises(InvalidRequest, match="of the output cannot be used"):
        inspect(hostile)
    assert time.monotonic() - began < 10
    assert inspect(Constraint("regex", f"[a-c]{{1,{len(hostile.text) % 90 + 1}}}"))  # the child serves on, or anew


def test_one_that_takes_too_long_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    inspect(rules(4))
    child = grammars._inspector._child
    assert child is not None
    os.kill(child.pid, signal.SIGSTOP)
    os.waitid(os.P_PID, child.pid, os.WSTOPPED)
    monkeypatch.setattr(grammars, "SECONDS", 0.1)
    with pytest.raises(InvalidRequest, match="too much time"):
        inspect(rules(40))
    assert child.poll() is not None


def test_many_may_ask_at_once() -> None:
    failed: list[Exception] = []

    def ask(number: int) -> None:
        try:
            inspect(Constraint("regex", f"x{{{number % 5 + 1}}}y{number}"))
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed

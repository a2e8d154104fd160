"""Grammars of strangers: bounded, and compiled in a child first, which may overflow its stack or take too long.

llguidance compiles in native code by recursion: 5,000 rules in a row overflow a stack of 8 MiB, and a process does not
survive that. What its child has compiled in time, the service compiles as well.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import selectors
import subprocess
import sys
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import structlog
from llguidance import LLMatcher

from service.errors import InvalidRequest

log = structlog.get_logger(__name__)

MOST_BYTES = 1 << 18
SECONDS = 1.0
"""For one grammar; a child that takes longer is ended."""
START_SECONDS = 20.0
KEPT_VERDICTS = 4096

_TOKEN = re.compile(r"<\[\d+\]>")
"""A token by its id, of which the child, whose vocabulary is the bytes, has 256; the model's own is looked at later."""
_LAYOUT = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""As Python writes JSON. A small model that may put white space anywhere puts it everywhere."""


@dataclass(frozen=True)
class Constraint:
    """What the output must be: a JSON value of a schema, a match of a regular expression, a sentence of a grammar.

    text: the JSON schema; the expression, in the syntax of Rust's regex; the grammar, in Lark's syntax.
    """

    kind: Literal["json_schema", "regex", "grammar"]
    text: str

    @classmethod
    def one_of(cls, choices: list[str] | tuple[str, ...]) -> Constraint:
        """The output is one of some texts."""
        return cls("grammar", "start: " + " | ".join(json.dumps(choice, ensure_ascii=False) for choice in choices))

    @property
    def digest(self) -> str:
        """What it is known by once it has been compiled."""
        return hashlib.blake2b(f"{self.kind}\0{self.text}".encode(errors="surrogatepass"), digest_size=16).hexdigest()


def inspect(constraint: Constraint) -> str:
    """llguidance's form of a constraint that can be compiled. Blocks until the child has said so; once for each.

    Raises:
        InvalidRequest: it is too large, cannot be read, or takes too much to compile.
    """
    if len(constraint.text) > MOST_BYTES:
        raise refused(constraint, f"it has {len(constraint.text):,} characters, of {MOST_BYTES:,} at most")
    grammar = _grammar(constraint)
    why = _inspector.why_not(constraint.digest, _TOKEN.sub("<[255]>", grammar))
    if why:
        raise refused(constraint, why)
    return grammar


def _grammar(constraint: Constraint) -> str:
    try:
        if constraint.kind == "json_schema":
            json.loads(constraint.text)
            return LLMatcher.grammar_from_json_schema(constraint.text, defaults=_LAYOUT)  # type: ignore[arg-type]
        if constraint.kind == "regex":
            return LLMatcher.grammar_from_regex(constraint.text)
        return LLMatcher.grammar_from_lark(constraint.text)
    except RecursionError:
        raise refused(constraint, "it is nested too deeply") from None
    except ValueError as error:
        raise refused(constraint, str(error)) from error


def refused(constraint: Constraint, why: str) -> InvalidRequest:
    """What the asker is told of a constraint that cannot be used."""
    lines = [line.strip() for line in why.splitlines()]
    said = next((line for line in lines if line.startswith("error: ")), lines[0] if lines else "unreadable")
    return InvalidRequest(
        f"The {constraint.kind.replace('_', ' ')} of the output cannot be used: {said.removeprefix('error: ')}.",
        hint="Correct it, or ask without a constraint.",
        param="structured_outputs",
    )


class _Inspector:
    """One child, asked for one grammar at a time; started when first asked and again after it had to be ended."""

    def __init__(self) -> None:
        self._turn = threading.Lock()
        self._verdicts: OrderedDict[str, str] = OrderedDict()
        self._child: subprocess.Popen[str] | None = None

    def why_not(self, digest: str, grammar: str) -> str:
        """Why a grammar cannot be used; "" if it can."""
        with self._turn:
            known = self._verdicts.get(digest)
            if known is None:
                known = self._verdicts[digest] = self._ask(grammar)
                if len(self._verdicts) > KEPT_VERDICTS:
                    self._verdicts.popitem(last=False)
            return known

    def _ask(self, grammar: str) -> str:
        child = self._running()
        assert child.stdin is not None
        began = time.monotonic()
        with contextlib.suppress(BrokenPipeError):
            child.stdin.write(json.dumps(grammar) + "\n")
            child.stdin.flush()
        why = self._heard(child, SECONDS)
        if why is not None:
            return why
        self._end(child)
        log.warning("a grammar was refused", bytes=len(grammar), seconds=round(time.monotonic() - began, 2))
        return "it takes too much time, memory or depth to compile"

    def _running(self) -> subprocess.Popen[str]:
        if self._child is None or self._child.poll() is not None:
            self._child = subprocess.Popen(
                [sys.executable, "-m", "service.engine.sampling.grammar_child"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={"PATH": os.environ.get("PATH", ""), "PYTHONPATH": str(Path(__file__).resolve().parents[3])},
                cwd="/",
                text=True,
                start_new_session=True,
            )
            if self._heard(self._child, START_SECONDS) != "ready":
                self._end(self._child)
                raise RuntimeError("the process that looks at grammars does not start")
        return self._child

    @staticmethod
    def _heard(child: subprocess.Popen[str], seconds: float) -> str | None:
        """The child's next word; None if it says nothing in time, or ends."""
        assert child.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(child.stdout, selectors.EVENT_READ)
            if not selector.select(seconds):
                return None
        line = child.stdout.readline()
        return str(json.loads(line)) if line else None

    def _end(self, child: subprocess.Popen[str]) -> None:
        child.kill()
        child.wait()
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        self._child = None


_inspector = _Inspector()

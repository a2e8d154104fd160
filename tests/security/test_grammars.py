"""Grammars of strangers are compiled in a limited child first."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def test_a_grammar_is_bounded(attack: Any, harmless: Callable[[Any], str]) -> None:
    told = harmless(attack)
    assert told.startswith(("400 The ", "200 ")), told

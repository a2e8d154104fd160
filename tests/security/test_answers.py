"""Answers: nobody's long ones keep another waiting for an answer of four tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

TOLD = {
    "96 answers of 30,000 tokens": "429 The queue is full",
    "millions of log-probabilities": "These are up to 9,600,000 log-probabilities; a response holds 500,000.",
}


def test_an_answer_is_bounded(attack: Any, harmless: Callable[[Any], str]) -> None:
    assert TOLD.get(attack.name, "") in harmless(attack)

"""What became different between two answers to one question."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from service.answering.answer import Answer

State = dict[str, Any]
"""An answer as a watch keeps it: ``answer``, ``refused``, ``verified``, ``citations``, and ids of what was ``read``."""
_WORDS = re.compile(r"\S+\s*|\s+")
_SENTENCES = re.compile(r"[^.!?\n]+[.!?\n]*\s*|[.!?\n]+\s*")
_MOST_PAIRS = 20_000_000
"""of equal pieces that are looked at, at worst: some tenths of a second"""
_CITED = ("document", "name", "start", "end", "page", "place", "cited_text", "support")


def state_of(answer: Answer) -> State:
    """What is kept of an answer."""
    return {
        "answer": answer.answer,
        "refused": answer.refused,
        "verified": answer.verified,
        "citations": [{name: one[name] for name in _CITED} for one in answer.citations if one["verified"]],
        "read": sorted({one["document"] for one in answer.results}),
    }


def difference(before: State | None, after: State) -> dict[str, Any] | None:
    """The difference as JSON; None where answer and cited words are the same.

    ``words``: runs of the answer's text, each kept ("="), gone ("-") or new ("+"). ``gone`` and ``new``: citations.
    """
    old: Mapping[str, Any] = before or {"answer": "", "citations": []}
    were = {(one["document"], one["cited_text"]) for one in old["citations"]}
    now = {(one["document"], one["cited_text"]) for one in after["citations"]}
    if before is not None and old["answer"] == after["answer"] and were == now:
        return None
    return {
        "answer_changed": old["answer"] != after["answer"],
        "words": _words(old["answer"], after["answer"]),
        "gone": [one for one in old["citations"] if (one["document"], one["cited_text"]) not in now],
        "new": [one for one in after["citations"] if (one["document"], one["cited_text"]) not in were],
    }


def _words(before: str, after: str) -> list[list[str]]:
    """Runs of words; of texts that repeat few words over and over, of whole sentences, or all of both."""
    for pieces in (_WORDS, _SENTENCES):
        old, new = pieces.findall(before), pieces.findall(after)
        if _pairs(old, new) <= _MOST_PAIRS:
            return _runs(old, new)
    return [["-", before], ["+", after]]


def _pairs(old: Sequence[str], new: Sequence[str]) -> int:
    counted = Counter(new)
    return sum(counted[one] for one in old) * min(len(old), len(new))


def _runs(old: Sequence[str], new: Sequence[str]) -> list[list[str]]:
    found: list[list[str]] = []
    for how, a, b, c, d in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if how == "equal":
            found.append(["=", "".join(old[a:b])])
            continue
        if b > a:
            found.append(["-", "".join(old[a:b])])
        if d > c:
            found.append(["+", "".join(new[c:d])])
    return found

"""What became different between two answers to one question."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Any

from service.answering.answer import Answer

State = dict[str, Any]
"""An answer as a watch keeps it: ``answer``, ``refused``, ``verified``, ``citations``, and ids of what was ``read``."""
_WORDS = re.compile(r"\S+\s*|\s+")
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
    old, new = _WORDS.findall(before), _WORDS.findall(after)
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

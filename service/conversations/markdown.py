"""A kept conversation as Markdown, its citations as footnotes."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from service.conversations.store import Turn

_ACTIVE = re.compile(r"([\\`*_{}\[\]<>#|!~])")
"""What Markdown reads as more than text."""


def exported(title: str, turns: Iterable[dict[str, Any]]) -> str:
    """Questions as headings, answers, and below each what carries it."""
    parts = [f"# {_plain(title)}"]
    for number, content in enumerate(turns, start=1):
        turn = Turn.model_validate(content)
        parts += [f"## {_plain(turn.question)}", _text(turn, number), *_notes(turn, number)]
    return "\n\n".join(parts) + "\n"


def _text(turn: Turn, number: int) -> str:
    """The answer, with the number of each footnote behind the claim that it carries."""
    marks: dict[int, list[str]] = {}
    for note, citation in enumerate(turn.citations, start=1):
        end = (citation.model_extra or {}).get("answer_end")
        at = end if isinstance(end, int) and 0 < end <= len(turn.text) else len(turn.text)
        marks.setdefault(at, []).append(f"[^{number}-{note}]")
    pieces, last = [], 0
    for at in sorted(marks):
        pieces += [_escaped(turn.text[last:at]), *marks[at]]
        last = at
    return "".join([*pieces, _escaped(turn.text[last:])]).strip()


def _notes(turn: Turn, number: int) -> list[str]:
    found = []
    for note, citation in enumerate(turn.citations, start=1):
        place = f", {_plain(citation.place)}" if citation.place else ""
        words = _plain(citation.cited_text or "")
        found.append(f"[^{number}-{note}]: {_plain(citation.name or citation.document)}{place}: “{words}”")
    return ["\n".join(found)] if found else []


def _plain(text: str) -> str:
    """On one line."""
    return _escaped(" ".join(text.split()))


def _escaped(text: str) -> str:
    return _ACTIVE.sub(r"\\\1", text)

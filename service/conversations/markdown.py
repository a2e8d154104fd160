"""A kept conversation as Markdown, its citations as footnotes or as references to BibTeX entries at its end."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Literal

from service.conversations.store import Source, Turn

References = Literal["footnotes", "bibtex"]

_ACTIVE = re.compile(r"([\\`*_{}\[\]<>#|!~])")
"""What Markdown reads as more than text."""
_BIBTEX = {
    "\\": r"\textbackslash{}",
    "{": r"\textbraceleft{}",
    "}": r"\textbraceright{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "`": r"\textasciigrave{}",
}
"""What TeX reads as more than text, and a fence of Markdown; whatever else it does has a backslash before it."""


def exported(title: str, turns: Iterable[dict[str, Any]], references: References = "footnotes") -> str:
    """Questions as headings, answers, and what carries them: below each, or all at the end."""
    notes: Footnotes | Entries = Footnotes() if references == "footnotes" else Entries()
    parts = [f"# {_plain(title)}"]
    for number, content in enumerate(turns, start=1):
        turn = Turn.model_validate(content)
        marks = [notes.mark(number, note, citation) for note, citation in enumerate(turn.citations, start=1)]
        parts += [f"## {_plain(turn.question)}", _marked(turn, marks), *notes.below(number, turn)]
    return "\n\n".join([*parts, *notes.at_end()]) + "\n"


class Footnotes:
    """Below each answer, what it cites."""

    def mark(self, number: int, note: int, citation: Source) -> str:
        return f"[^{number}-{note}]"

    def below(self, number: int, turn: Turn) -> list[str]:
        found = [
            f"{self.mark(number, note, one)}: {_plain(_name(one))}{_place(one)}: “{_plain(one.cited_text or '')}”"
            for note, one in enumerate(turn.citations, start=1)
        ]
        return ["\n".join(found)] if found else []

    def at_end(self) -> list[str]:
        return []


class Entries:
    """An entry for each passage that is cited, as pandoc's `[@key]` names it."""

    def __init__(self) -> None:
        self._entries: dict[tuple[str, Any, Any], tuple[str, str]] = {}

    def mark(self, number: int, note: int, citation: Source) -> str:
        more = citation.model_extra or {}
        passage = (citation.document, more.get("start"), more.get("end"))
        if passage not in self._entries:
            key = f"{_key(_name(citation))}-{len(self._entries) + 1}"
            self._entries[passage] = (key, self._entry(key, citation, passage))
        return f" [@{self._entries[passage][0]}]"

    def below(self, number: int, turn: Turn) -> list[str]:
        return []

    def at_end(self) -> list[str]:
        if not self._entries:
            return []
        entries = "\n".join(entry for _, entry in self._entries.values())
        return [f"## References\n\n```bibtex\n{entries}\n```"]

    def _entry(self, key: str, citation: Source, passage: tuple[str, Any, Any]) -> str:
        document, start, end = passage
        where = f", characters {start}-{end}" if isinstance(start, int) and isinstance(end, int) else ""
        place = f"{_tex(citation.place)}: " if citation.place else ""
        fields = {
            "title": _tex(_name(citation)),
            "howpublished": _tex(f"Folio document {document}{where}"),
            "note": f"{place}``{_tex(citation.cited_text or '')}''",
        }
        lines = "".join(f"  {name} = {{{value}}},\n" for name, value in fields.items())
        return f"@misc{{{key},\n{lines}}}"


def _marked(turn: Turn, marks: list[str]) -> str:
    """The answer, with the marks of its citations behind the claims that they carry."""
    found: dict[int, list[str]] = {}
    for mark, citation in zip(marks, turn.citations, strict=True):
        end = (citation.model_extra or {}).get("answer_end")
        at = end if isinstance(end, int) and 0 < end <= len(turn.text) else len(turn.text)
        found.setdefault(at, []).append(mark)
    pieces, last = [], 0
    for at in sorted(found):
        pieces += [_escaped(turn.text[last:at]), *found[at]]
        last = at
    return "".join([*pieces, _escaped(turn.text[last:])]).strip()


def _name(citation: Source) -> str:
    return citation.name or citation.document


def _place(citation: Source) -> str:
    return f", {_plain(citation.place)}" if citation.place else ""


def _key(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.rpartition(".")[0].lower() or name.lower()).strip("-")[:40] or "document"


def _plain(text: str) -> str:
    """On one line."""
    return _escaped(" ".join(text.split()))


def _escaped(text: str) -> str:
    return _ACTIVE.sub(r"\\\1", text)


def _tex(text: str) -> str:
    """On one line, as TeX writes it; a brace alone would end the entry."""
    return "".join(
        _BIBTEX.get(character) or (f"\\{character}" if character in "%&$#_" else character)
        for character in " ".join(text.split())
    )

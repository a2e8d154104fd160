"""Rows of a table that say nothing without the names of their columns, which stand in its first row (Markdown)."""

from __future__ import annotations

import re
from collections.abc import Sequence

from service.answering.passages import Passage
from service.reader.sentences import Sentence

_RULE = re.compile(r"\s*+\|?(?:\s*+:?-++:?\s*+\|)++(?:\s*+:?-++:?)?+\s*(?:\n|$)")
"""The line under the names."""
_NEXT_LINE = re.compile(r"[ \t]*\n(?:[ \t|:-]+\n)?[ \t]*")


def columns_of(sentences: Sequence[tuple[Passage, Sentence]]) -> dict[int, int]:
    """For the numbers of rows, and of the names themselves, the number of the row that names their columns.

    sentences: with the passage in which each stands, in order.
    """
    found: dict[int, int] = {}
    names: int | None = None
    for number, (passage, sentence) in enumerate(sentences):
        if " | " not in sentence.words:
            names = None
        elif _RULE.match(passage.text, sentence.end):
            names = number
        elif names is not None:
            home, before = sentences[number - 1]
            if home is not passage or not _NEXT_LINE.fullmatch(passage.text, before.end, sentence.start):
                names = None
        if names is not None:
            found[number] = names
    return found

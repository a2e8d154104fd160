"""What stands around a passage in a prompt, and how an answer names it: signs that no passage holds.

Whoever writes a document knows how prompts are made, and may write what looks like the end of his passage and the
beginning of another. So each passage stands between two delimiters with a code, made of a digest of the passage itself,
that occurs in none of the passages, however it is spelt. The same passages give the same codes: prompts over them share
a prefix.
"""

from __future__ import annotations

import hashlib
import itertools
import re
import unicodedata
from collections.abc import Sequence

from service.answering.passages import Passage

CODE_LENGTH = 6
NAME_LENGTH = 120

_UNSAID = re.compile(r"[^0-9a-z]+")
_UNMARKED = re.compile(r"[^0-9a-z\[]+")
_UNPRINTED = re.compile(
    r"[\x00-\x1f\x7f-\x9f\u00ad\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u2028-\u202e"
    r"\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\U000e0000-\U000e0fff]+"
)


def codes(passages: Sequence[Passage], beside: str = "") -> list[str]:
    """One code a passage, in hexadecimal digits, that no passage, no name and no text `beside` them holds.

    Case, width, white space, punctuation and characters without a shape do not hide one.
    """
    texts = [beside, *(text for passage in passages for text in (passage.shown, passage.name))]
    held = [_UNSAID.sub("", _folded(text)) for text in texts]
    return [_code(number, passage, held) for number, passage in enumerate(passages, start=1)]


def markers(passages: Sequence[Passage]) -> list[str]:
    """By what an answer names each passage: ``[D1]``, ``[D2]``, …, or with longer letters where a passage has such."""
    held = [_UNMARKED.sub("", _folded(text)) for passage in passages for text in (passage.shown, passage.name)]
    for length in itertools.count(1):
        letters = "D" * length
        taken = re.compile(rf"\[{letters.lower()}[0-9]")
        if not any(taken.search(text) for text in held):
            return [f"[{letters}{number}]" for number in range(1, len(passages) + 1)]
    raise AssertionError("no text holds markers of every length")


def shown_name(name: str) -> str:
    """A document's name on one line, without what could be taken for markup."""
    name = _UNPRINTED.sub(" ", name).replace('"', "'").replace("<", " ").replace(">", " ")
    return " ".join(name.split())[:NAME_LENGTH]


def tagged(passage: Passage, number: int, code: str, marker: str = "") -> str:
    """A passage as an element of XML, its code in both tags."""
    page = f' page="{passage.page}"' if passage.page is not None else ""
    named = f'number="{number}"' if not marker else f'marker="{marker}"'
    opening = f'<document {code} {named} name="{shown_name(passage.name)}"{page}>'
    return f"{opening}\n{passage.shown}\n</document {code}>\n\n"


def ruled(passage: Passage, number: int, code: str, marker: str = "") -> str:
    """A passage between two rules with its code, under its name."""
    page = f", page {passage.page}" if passage.page is not None else ""
    opening = f"--- {code} {marker or number}: {shown_name(passage.name)}{page}"
    return f"{opening}\n{passage.shown}\n--- {code}\n\n"


def pieces(block: str, passage: Passage) -> list[str]:
    """What ``tagged`` or ``ruled`` made of a passage: what stands before it, itself with its last line's end, the rest.

    Each is encoded by itself, so that the ids of a passage are the same in every prompt.
    """
    first = block.index("\n") + 1
    last = first + len(passage.shown) + 1
    return [block[:first], block[first:last], block[last:]]


def _code(number: int, passage: Passage, held: Sequence[str]) -> str:
    for attempt in itertools.count():
        source = f"{number}\n{attempt}\n{passage.name}\n{passage.shown}"
        code = hashlib.blake2b(source.encode(), digest_size=CODE_LENGTH // 2).hexdigest()
        if not any(code in text for text in held):
            return code
    raise AssertionError("no text holds every code")


def _folded(text: str) -> str:
    return unicodedata.normalize("NFKC", text).casefold()

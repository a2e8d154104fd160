"""Where a quotation stands in stored text: its exact span, or nothing.

A quotation is turned into a pattern that forgives what parsing and printing do to text (line breaks, hyphenation at
line ends, ligatures, the shapes of quotes and dashes, marks of emphasis) and nothing else: a changed word, digit or
letter does not match. The pattern runs over the stored text, so a match *is* the exact span; it begins and ends where
words do, over hyphens too, so that "happy man" is not found in "unhappy man". No part of a pattern gives back what it
has taken, so that no text takes long.
"""

from __future__ import annotations

import itertools
import re
import unicodedata
from functools import lru_cache

from retrieval.parsing.sentences import Span

DASHES = "-\u2010\u2011\u2012\u2013\u2014\u2015\u2212"
DOUBLE_QUOTES = '"\u201c\u201d\u201e\u201f\u2033\u00ab\u00bb'
SINGLE_QUOTES = "'\u2018\u2019\u201a\u201b\u2032\u0060\u00b4"
LIGATURES = {
    "ffi": "\ufb03",
    "ffl": "\ufb04",
    "ff": "\ufb00",
    "fi": "\ufb01",
    "fl": "\ufb02",
    "st": "\ufb06",
}
UNLIGATURE = {ligature: letters for letters, ligature in LIGATURES.items()} | {"\ufb05": "st"}

_LETTER = r"[^\W\d_]"
_UNSEEN = "\u200b\u2060\ufeff"
_WRAPPING = f" \t\r\n\u2026{DOUBLE_QUOTES}{SINGLE_QUOTES}"
_BREAK = rf"(?:[\u00ad{_UNSEEN}]|[{DASHES[:3]}][ \t]*+\r?\n\s*+)?+"
"""What may part two letters of one word in stored text: a soft hyphen, or a hyphen at a line's end."""
_EMPHASIS = r"[_*]{0,3}+"
"""What may stand around a word in stored text."""
_EMPHASISED = re.compile(r"(?<![^\W_])[_*]{1,3}(?=[^\s_*])|(?<=[^\s_*])[_*]{1,3}(?![^\W_])")
_TOKEN = re.compile(
    rf"(?P<dash>\s*(?:[{DASHES}]{{2,}}|[{DASHES[3:7]}]|(?<=\s)[{DASHES}](?=\s))\s*)|(?P<hyphen>[{DASHES}]\s*)"
    r"|(?P<space>\s+)|(?P<ellipsis>\u2026|\.\s?\.\s?\.)|(?P<ligature>ffi|ffl|ff|fi|fl|st)|.",
    re.DOTALL,
)
# A letter or digit of a script that parts its words by spaces.
_SPACED = r"[^\W_\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]"
_BROKEN = rf"(?:[{DASHES[:2]}][ \t]*\r?\n[ \t]*|\u00ad\s*)"
_GOES_BACK = re.compile(rf"(?:{_SPACED}|{_LETTER}{_BROKEN})\Z")
_GOES_ON = re.compile(rf"{_SPACED}|{_BROKEN}{_LETTER}")
_REACH = 8
"""characters at most between the two parts of a word that a line's end breaks"""


def align(quote: str, text: str, start: int = 0) -> Span | None:
    """The first span of ``text`` from ``start`` on that ``quote`` repeats, as character offsets, or None.

    An exact occurrence goes before any other; last, quotation marks around the quote and the stop at its end are not
    held against it.
    """
    quote = quote.strip()
    at = text.find(quote, start) if quote else -1
    if at >= 0 and _at_word_edges(text, at, at + len(quote)) and _says_something(quote):
        return at, at + len(quote)
    unwrapped = quote.strip(_WRAPPING)
    for form in dict.fromkeys((quote, unwrapped, unwrapped.rstrip(".,;:!? "))):
        if not _says_something(form):
            return None
        for found in _pattern(form).finditer(text, start):
            if _at_word_edges(text, *found.span()):
                return found.span()
    return None


def _says_something(quote: str) -> bool:
    return any(character.isalnum() for character in quote)


def _at_word_edges(text: str, start: int, end: int) -> bool:
    if re.match(_SPACED, text[start]) and _GOES_BACK.search(text, max(0, start - _REACH), start):
        return False
    return not (re.match(_SPACED, text[end - 1]) and _GOES_ON.match(text, end, end + _REACH))


@lru_cache(maxsize=256)
def _pattern(quote: str) -> re.Pattern[str]:
    """A pattern for the stored forms of a quotation."""
    quote = unicodedata.normalize("NFC", _EMPHASISED.sub("", quote))
    quote = "".join(UNLIGATURE.get(c, c) for c in quote if c not in _UNSEEN)
    quote = re.sub(rf"(?<={_LETTER})[{DASHES[:3]}]\s+(?={_LETTER})|\u00ad", "\u00ad", quote)  # broken at a line's end
    tokens = list(_TOKEN.finditer(quote))
    parts = [_unit(tokens[0], first=True)] if tokens else []
    for left, right in itertools.pairwise(tokens):
        parts += [_between(left[0], right[0]), _unit(right)]
    return re.compile("".join(parts))


def _between(left: str, right: str) -> str:
    """What stored text may hold between two tokens of a quotation."""
    if left[-1] in "_*\u00ad" or right[0] in "_*\u00ad":
        return ""
    return _BREAK if left[-1].isalnum() and right[0].isalnum() else _EMPHASIS


def _unit(found: re.Match[str], *, first: bool = False) -> str:
    """The pattern of one token."""
    token = found[0]
    if found["dash"]:
        return rf"\s*+[{DASHES}]{{1,3}}+\s*+"
    if found["hyphen"]:
        return rf"[{DASHES}]{{1,3}}+\s*+"
    if found["space"]:
        return r"\s++"
    if found["ellipsis"]:
        return r"(?:\u2026|\.\s?\.\s?\.)"
    if found["ligature"]:
        return _ligature(token)
    if token == "\u00ad":
        return rf"(?:[{DASHES[:3]}\u00ad]\s*+)?+"
    if token in DOUBLE_QUOTES:
        return f"(?:[{DOUBLE_QUOTES}]|``|'')"
    if token in SINGLE_QUOTES:
        return f"[{SINGLE_QUOTES}]"
    decomposed = unicodedata.normalize("NFD", token)
    forms = [token] if decomposed == token else [token, decomposed]
    if first and token.swapcase() != token and len(token.swapcase()) == 1:
        forms.append(token.swapcase())
    alternatives = "|".join(re.escape(form) for form in forms)
    return alternatives if len(forms) == 1 else f"(?:{alternatives})"


def _ligature(letters: str) -> str:
    forms = [_BREAK.join(letters), LIGATURES[letters]]
    if letters == "st":
        forms.append("\ufb05")
    if len(letters) == 3:
        forms += [LIGATURES["ff"] + _BREAK + letters[2], "f" + _BREAK + LIGATURES[letters[1:]]]
    return f"(?:{'|'.join(forms)})"

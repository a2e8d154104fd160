"""A folded text as words; of scripts that are written without spaces, the characters and their overlapping pairs.

Pairs alone miss a word of one character; both together find more than a dictionary's words do (XQuAD in Chinese).
"""

from __future__ import annotations

import itertools
import re
import unicodedata

# Thai, Lao, Tibetan, Burmese, Khmer; kana, Han and Hangul, whose words carry their particles.
_UNSPACED = (
    "\u0e00-\u0eff\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf"
    "\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff"
)


def _marks() -> str:
    """Combining marks, which ``\\w`` leaves out: without them a word of Hindi is a handful of fragments."""
    return "".join(
        chr(code)
        for code in (*range(0x300, 0x1E00), *range(0xA800, 0xAC00))
        if unicodedata.category(chr(code)) in ("Mn", "Mc")
    )


_UNSPACED_RUN = re.compile(f"[{_UNSPACED}]")
_ASCII_WORD = re.compile("[a-z0-9]+")
_SPACED_WORD = re.compile(f"[^\\W_]+(?:[{_marks()}]+[^\\W_]*)*")
_WORD = re.compile(f"[{_UNSPACED}]+|[^\\W_{_UNSPACED}]+(?:[{_marks()}]+[^\\W_{_UNSPACED}]*)*")


def is_unspaced(text: str) -> bool:
    """Whether it begins with a character of a script that is written without spaces."""
    return _UNSPACED_RUN.match(text) is not None


def words(folded: str) -> list[str]:
    """In order."""
    if folded.isascii():
        return _ASCII_WORD.findall(folded)
    if not _UNSPACED_RUN.search(folded):
        return _SPACED_WORD.findall(folded)
    return [part for word in _WORD.findall(folded) for part in (_characters(word) if is_unspaced(word) else (word,))]


def _characters(run: str) -> list[str]:
    return [*run, *map("".join, itertools.pairwise(run))]

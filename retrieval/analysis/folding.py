"""One spelling for what reads the same: case, width, ligatures, accents, and characters that nobody sees."""

from __future__ import annotations

import re
import unicodedata

# Unicode's Default_Ignorable_Code_Point: soft hyphens, joiners, marks of direction, selectors of variants.
_UNSEEN = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164"
    "\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufff8\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
# Accents of Latin, Greek and Cyrillic; vowel points of Hebrew and Arabic, and Arabic's hamza and stretching stroke.
# Marks of other scripts (Devanagari's vowels, Thai's, the voicing of kana) are letters of their own.
_ACCENT = re.compile(
    "[\u0300-\u036f\u0483-\u0487\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7\u0610-\u061a\u0640\u064b-\u065f\u0670]"
)
_UNDECOMPOSED = str.maketrans(
    {"ø": "o", "đ": "d", "ð": "d", "ħ": "h", "ı": "i", "ł": "l", "þ": "th", "æ": "ae", "œ": "oe"}
)
_GROUPED = re.compile(r"(?<=[0-9])[.,'’](?=[0-9]{3}(?![0-9]))")


def fold(text: str) -> str:
    """Compatibility forms (NFKC), case and unseen characters folded; 1,900 and 1.900 are 1900. Idempotent."""
    if not text.isascii():
        text = _composed(_composed(_UNSEEN.sub("", text)).casefold())
        text = _UNSEEN.sub("", text)
    return _GROUPED.sub("", text.lower())


def _composed(text: str) -> str:
    return text if unicodedata.is_normalized("NFKC", text) else unicodedata.normalize("NFKC", text)


def unaccented(word: str) -> str:
    """A folded word without its accents. Idempotent."""
    if word.isascii():
        return word
    bare = _ACCENT.sub("", unicodedata.normalize("NFD", word))
    return unicodedata.normalize("NFC", bare).translate(_UNDECOMPOSED)

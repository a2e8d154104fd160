"""Which encoding a text is in, decided on the whole file, and how many of its bytes are in doubt.

By the byte order mark; else UTF-16 or UTF-32 where the zero bytes say so; else UTF-8, also where single bytes of it are
bad; else, weighed by language (chardet), one of the 8-bit and East Asian encodings.
"""

from __future__ import annotations

import codecs
import functools
import itertools
import re
import unicodedata
from collections.abc import Iterator
from typing import NamedTuple

from retrieval.errors import UnsupportedFile

_MARKS = [
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
]
_WIDE = ("utf-32-le", "utf-32-be", "utf-16-le", "utf-16-be")
_SAMPLE = 1 << 18
_MOST_DOUBTFUL = 0.1
"""share of the characters beyond ASCII (of all, in UTF-16) above which bytes are no text of an encoding"""
_HIGH_LINE = re.compile(rb"^[^\n\x80-\xff]*+[\x80-\xff][^\n]*+\n?", re.M)
_HIGH_RUN = re.compile(rb"[\x80-\xff]+")
_ESCAPE = re.compile(rb"\x1b[$(]")  # as ISO-2022 begins another set of characters
_HIGH = bytes(range(128, 256))
_CONTROLS = bytes({*range(32)} - {*b"\t\n\r\f\x1b"})
_FEW_LETTERS = 12
_LATIN = ("cp1250", "iso8859-2", "cp1254", "cp1257", "iso8859-15", "iso8859-16", "cp852", "cp862", "cp437")
"""taken for cp1252 where there is little to go by"""
_DOS = ("cp437", "cp852", "cp855", "cp857", "cp858", "cp860", "cp861", "cp862", "cp863", "cp865", "cp866")
_NO_ENCODINGS = ("idna", "punycode", "undefined", "unicode-escape", "raw-unicode-escape", "utf-7", "mbcs", "oem")
"""codecs of text that no file is in, and that may do more than decode"""
_WORD = re.compile(r"[^\W\d_]+")
_CAPITAL_INSIDE = re.compile(r"[a-z\xdf-\xff][\xc0-\xd6\xd8-\xde]|[\xdf-\xf6\xf8-\xff][A-Z]")
_SIGNS = "\xa1-\xa9\xab\xac\xae-\xb1\xb4-\xb6\xb8\xbb-\xbf\xd7\xf7\u201a\u201e\u2020-\u2022\u2030\u2200-\u23ff"
_SIGN_INSIDE = re.compile(
    rf"(?<=[^\W\d_])[{_SIGNS}](?=[^\W\d_])|(?<![\u2500-\u259f])[\u2500-\u259f](?![\u2500-\u259f])"
)
_WIDER = {"iso8859-1": "cp1252", "iso8859-9": "cp1254", "ascii": "utf-8", "shift_jis": "cp932", "gb2312": "gb18030"} | {
    "gbk": "gb18030", "euc_kr": "cp949", "tis-620": "cp874", "iso8859-11": "cp874"
}  # fmt: skip


class Decoded(NamedTuple):
    """A text, the encoding it was read in, and how many of its characters became U+FFFD for want of a better one."""

    text: str
    encoding: str
    doubtful: int

    def notes(self) -> list[str]:
        """What a reader should know of it: nothing for sound UTF-8."""
        if self.encoding == "utf-8" and not self.doubtful:
            return []
        return [f"decoded as {self.encoding} with {self.doubtful} doubtful byte{'s' * (self.doubtful != 1)}"]


def decode(data: bytes, name: str, declared: str | None = None) -> Decoded:
    """The text of a whole file, without its byte order mark.

    Args:
        declared: an encoding that the file claims; believed where the bytes do not contradict it.
    Error: UnsupportedFile when no encoding makes text of it.
    """
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            marked = _decoded(data[len(mark) :], encoding)
            if marked.doubtful > _MOST_DOUBTFUL * len(marked.text):
                raise UnsupportedFile(f"{name} claims to be {encoding} but is not; save it as UTF-8")
            return marked
    wide = wide_encoding(data)
    if wide:
        return _decoded(data, wide)
    utf8 = _decoded(data, "utf-8")
    shifted = _ESCAPE.search(data) is not None
    # A sequence of two bytes or more that is valid UTF-8 is hardly ever anything else.
    if _beyond_ascii(utf8.text) >= 3 * utf8.doubtful and not shifted:
        return utf8
    for encoding in _likely(data, declared, shifted):
        candidate = _decoded(data, encoding)
        if candidate.doubtful <= _MOST_DOUBTFUL * _beyond_ascii(candidate.text):
            return candidate
    raise UnsupportedFile(f"{name} is neither UTF-8 nor any encoding that could be recognised; save it as UTF-8")


def wide_encoding(data: bytes) -> str | None:
    """UTF-16 or UTF-32 without a byte order mark, where there are zero bytes and they lie as they do in text."""
    sample = data[: _SAMPLE & ~3]
    if b"\0" not in sample:
        return None
    read = [(blocks, encoding) for encoding in _WIDE if (blocks := _blocks_of_text(sample, encoding))]
    return min(read)[1] if read else None


def _likely(data: bytes, declared: str | None, shifted: bool) -> Iterator[str]:
    """Encodings that the file may be in, the likeliest first."""
    if declared and (claimed := _known(declared)):
        yield claimed
    if _is_typography(data) and not shifted:
        yield "cp1252"
    if not _is_binary(data):
        sample = _telling(data)
        yield from sorted(_guesses(sample), key=lambda encoding: _oddness(_decoded(sample, encoding)))
    yield from (encoding for encoding in _WIDE[2:] if _blocks_of_text(data[:_SAMPLE], encoding))


def _decoded(data: bytes, encoding: str) -> Decoded:
    try:
        return Decoded(data.decode(encoding), encoding, 0)
    except UnicodeDecodeError:
        text = data.decode(encoding, "replace")
        own = data.count("\ufffd".encode(encoding)) if encoding.startswith("utf") else 0
        return Decoded(text, encoding, text.count("\ufffd") - own)


def _telling(data: bytes) -> bytes:
    """Lines with bytes beyond ASCII, from all over the file."""
    lines = _HIGH_LINE.findall(data)
    while sum(map(len, lines)) > _SAMPLE and len(lines) > 1:
        lines = lines[::2]
    return b"".join(lines)[:_SAMPLE] or data[:_SAMPLE]


def _guesses(sample: bytes) -> list[str]:
    """A few, by language."""
    from chardet import detect_all

    found = [_known(guess["encoding"]) for guess in detect_all(sample, max_bytes=_SAMPLE) if guess["encoding"]]
    guesses = [encoding for encoding in found if encoding and not encoding.startswith("utf")][:3]
    if any(encoding in _DOS for encoding in guesses):
        guesses.append("cp850")
    # So few letters tell Western from Central European by chance; the common one is meant.
    few = len(sample) - len(sample.translate(None, _HIGH)) < _FEW_LETTERS
    western = few and guesses and guesses[0] in _LATIN
    return list(dict.fromkeys(["cp1252", *guesses] if western else [*guesses, "cp1252"]))


def _known(label: str) -> str | None:
    """Python's name for an encoding, in the wider form that is meant in practice; None where it has none."""
    try:
        found = codecs.lookup(label.strip())
    except (LookupError, ValueError):
        return None
    if not found._is_text_encoding or found.name in _NO_ENCODINGS:
        return None
    return _WIDER.get(found.name, found.name)


def _is_binary(data: bytes) -> bool:
    """Whether controls are more than an accident."""
    sample = data[:_SAMPLE]
    return len(sample) - len(sample.translate(None, _CONTROLS)) > 0.05 * len(sample)


def _is_typography(data: bytes) -> bool:
    """Whether all beyond ASCII is what Windows sets among English words: quotes, dashes, currency, few and apart."""
    try:
        text = data.decode("cp1252")
    except UnicodeDecodeError:
        return False
    high = [run.group() for run in _HIGH_RUN.finditer(data)]
    few = sum(map(len, high)) * 8 <= len(data) and all(len(run) <= 3 for run in high)
    return few and not any(ch > "\x7f" and ch.isalpha() for ch in text) and not _SIGN_INSIDE.search(text)


def _oddness(reading: Decoded) -> tuple[bool, float]:
    """Whether there is doubt, and the share of the characters beyond ASCII that stand as none would in any language:
    two alphabets in a word, a sign or a capital in the midst of one, a piece of a frame alone."""
    text = reading.text
    odd = sum(_mixes_alphabets(word) for word in _WORD.findall(text) if not word.isascii())
    odd += len(_CAPITAL_INSIDE.findall(text)) + len(_SIGN_INSIDE.findall(text))
    return reading.doubtful > 0, round(odd / max(_beyond_ascii(text), 1), 2)


def _mixes_alphabets(word: str) -> bool:
    return len({_alphabet(ch) for ch in word}) > 1


@functools.cache
def _alphabet(letter: str) -> str:
    alphabet = unicodedata.name(letter, "").partition(" ")[0]
    return "CJK" if alphabet in ("HIRAGANA", "KATAKANA", "HANGUL", "HALFWIDTH", "FULLWIDTH") else alphabet


def _beyond_ascii(text: str) -> int:
    return 0 if text.isascii() else len(text) - len(text.encode("ascii", "ignore"))


def _blocks_of_text(sample: bytes, encoding: str) -> int:
    """How many rows of Unicode the characters lie in; 0 where they are not such as stand together in a language.

    The wrong order of bytes scatters them over more rows.
    """
    try:
        text = sample[: len(sample) & ~3].decode(encoding)
    except UnicodeDecodeError:
        return 0
    odd = sum(unicodedata.category(ch) in ("Cc", "Cn", "Co", "Cs") and ch not in "\t\n\r\f" for ch in text)
    seams = sum(_is_seam(one, two) for one, two in itertools.pairwise(text))
    blocks = len({ord(ch) >> 8 for ch in text})
    return blocks if odd <= 0.001 * len(text) and seams <= 0.1 * len(text) and blocks <= 24 + len(text) / 8 else 0


def _is_seam(one: str, two: str) -> bool:
    """Whether a Latin letter meets one of another alphabet, which is rare within a word."""
    return (one < "\u0250") != (two < "\u0250") and one.isalpha() and two.isalpha()

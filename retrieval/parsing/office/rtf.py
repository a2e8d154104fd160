"""RTF: its text, paragraph by paragraph. Hidden text and pictures are noted, not stored."""

from __future__ import annotations

import re

from retrieval.errors import EmptyFile
from retrieval.parsing.builder import TextBuilder
from retrieval.parsing.document import ParsedDocument
from retrieval.parsing.sniff import MEDIA_TYPES

_TOKEN = re.compile(
    rb"\\([a-zA-Z]{1,32})(-?\d{1,10})? ?|\\'([0-9a-fA-F]{2})|\\([^a-zA-Z])|([{}])|[\r\n]+|([^\\{}\r\n]+)"
)
_UNSEEN = {
    b"fonttbl", b"colortbl", b"stylesheet", b"info", b"pict", b"object", b"fldinst", b"listtable", b"themedata",
    b"listoverridetable", b"rsidtbl", b"generator", b"xmlnstbl", b"datastore", b"latentstyles", b"revtbl", b"filetbl",
}  # fmt: skip
_SIGNS = {
    b"par": "\n\n", b"sect": "\n\n", b"page": "\n\n", b"line": "\n", b"row": "\n", b"cell": "\t", b"tab": "\t",
    b"emdash": "—", b"endash": "–", b"lquote": "‘", b"rquote": "’", b"ldblquote": "“", b"rdblquote": "”",
    b"bullet": "•", b"emspace": " ", b"enspace": " ",
}  # fmt: skip
_ESCAPED = {b"~": "\u00a0", b"_": "-", b"-": "", b"\\": "\\", b"{": "{", b"}": "}", b"\n": "\n\n", b"\r": "\n\n"}


def parse_rtf(data: bytes, name: str) -> ParsedDocument:
    """Places are paragraphs. Errors: EmptyFile."""
    reader = _Reader()
    reader.read(data)
    builder = TextBuilder()
    paragraphs = [text for text in re.split(r"\n{2,}", reader.text()) if text.strip()]
    for number, text in enumerate(paragraphs, 1):
        builder.part()
        builder.add(text.strip(), (f"paragraph {number}",))
    if reader.pictures:
        builder.notes.append(f"pictures and embedded objects were not read ({reader.pictures})")
    if reader.hidden:
        builder.notes.append(f"hidden text was not read ({reader.hidden} characters)")
    if reader.depth > 0:
        builder.notes.append("the file is cut off; what came before was read")
    if not builder.length:
        raise EmptyFile(f"{name} has no text; nothing to ingest")
    return builder.document(MEDIA_TYPES["rtf"])


class _Reader:
    """State of the group that is being read; those around it are kept on a stack.

    Attributes:
        depth: groups that are open.
    """

    def __init__(self) -> None:
        self.pictures = 0
        self.hidden = 0
        self.depth = 0
        self._parts: list[str] = []
        self._bytes = bytearray()  # of the code page, not yet decoded: a character may take two escapes
        self._stack: list[tuple[bool, bool, int]] = []
        self._unseen = False
        self._vanished = False
        self._after_unicode = 1  # characters that stand for one in \\u, for readers that do not know it
        self._skip = 0
        self._codepage = "cp1252"

    def text(self) -> str:
        self._flush()
        # what lies beyond the first 65,536 characters is written as two halves
        return "".join(self._parts).encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")

    def read(self, data: bytes) -> None:
        at = 0
        while match := _TOKEN.match(data, at):
            at = match.end()
            word, number, code, escaped, brace, plain = match.groups()
            if word == b"bin":
                at += max(int(number or 0), 0)
            elif word:
                self._word(word, int(number) if number else None)
            elif code:
                self._write(bytes([int(code, 16)]))
            elif escaped == b"*":
                self._unseen = True
            elif escaped:
                self._sign(_ESCAPED.get(escaped, ""))
            elif brace == b"{":
                self.depth += 1
                self._stack.append((self._unseen, self._vanished, self._after_unicode))
            elif brace:
                self.depth -= 1
                if self._stack:
                    self._unseen, self._vanished, self._after_unicode = self._stack.pop()
            elif plain:
                self._write(plain)

    def _word(self, word: bytes, number: int | None) -> None:
        if word in _UNSEEN:
            self.pictures += word in (b"pict", b"object") and not self._unseen
            self._unseen = True
        elif word in _SIGNS:
            self._sign(_SIGNS[word])
        elif word == b"u" and number is not None:
            self._sign(chr(number & 0xFFFF))
            self._skip = self._after_unicode
        elif word == b"uc":
            self._after_unicode = max(number or 0, 0)
        elif word == b"v":
            self._vanished = number != 0
        elif word == b"plain":
            self._vanished = False
        elif word == b"ansicpg" and number:
            self._codepage = f"cp{number}"
        elif word == b"mac":
            self._codepage = "mac_roman"

    def _sign(self, sign: str) -> None:
        self._flush()
        if not self._unseen and not self._vanished:
            self._parts.append(sign)

    def _write(self, data: bytes) -> None:
        skipped = min(self._skip, len(data))
        self._skip -= skipped
        data = data[skipped:]
        if self._vanished and not self._unseen:
            self.hidden += len(data)
        elif not self._unseen:
            self._bytes += data

    def _flush(self) -> None:
        if self._bytes:
            try:
                self._parts.append(self._bytes.decode(self._codepage, "replace"))
            except LookupError:
                self._parts.append(self._bytes.decode("cp1252", "replace"))
            self._bytes.clear()

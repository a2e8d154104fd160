"""What single tokens are made of: their bytes, a name for each, and where they begin in a text.

A token may be a part of a character, so that it has bytes and no text. Tokenizers of two kinds say what the bytes are:
byte-level ones, whose vocabulary writes each byte as a letter (GPT-2's table), and those with SentencePiece's blanks
(``▁``) and bytes (``<0xE2>``). Of others a token's bytes are those of its decoded text.
"""

from __future__ import annotations

import json
import re
from functools import cache, cached_property, lru_cache
from typing import Any

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_BLANK = "\u2581"


class TokenTexts:
    """The tokens of one model."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._special = frozenset(tokenizer.all_special_ids)
        self._added = {number: token.content for number, token in tokenizer.added_tokens_decoder.items()}
        self._decoder = _decoder(tokenizer)

    def data(self, token_id: int) -> bytes | None:
        """Bytes of the text that a token stands for; None for a token of control, which stands for none."""
        if token_id in self._special:
            return None
        if token_id in self._added:
            return self._added[token_id].encode()
        piece = self._tokenizer.convert_ids_to_tokens(token_id)
        if piece is None:  # a row of the model that no token has
            return b""
        if "ByteLevel" in self._decoder:
            table = _byte_letters()
            return bytes(table[letter] for letter in piece if letter in table)
        if _BLANK in self._decoder or "ByteFallback" in self._decoder or "Metaspace" in self._decoder:
            byte = _BYTE.fullmatch(piece)
            return bytes([int(byte[1], 16)]) if byte else piece.replace(_BLANK, " ").encode()
        return self._tokenizer.decode([token_id]).encode()

    def text(self, token_id: int) -> str:
        """A token as text; what is no text is written as OpenAI does, ``bytes:\\xe2\\x80``."""
        data = self.data(token_id)
        if data is None:
            return str(self._added.get(token_id) or self._tokenizer.convert_ids_to_tokens(token_id))
        try:
            return data.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)

    def drops_blank(self, token_id: int) -> bool:
        """Whether a text that begins with this token leaves out its blank."""
        return not self._tokenizer.decode([token_id]).startswith(" ")

    @cached_property
    def doubles_blank(self) -> bool:
        """Whether a blank is put before a text that begins with one."""
        ids = self._tokenizer(" a", add_special_tokens=False).input_ids
        return b"".join(self.data(token) or b"" for token in ids).startswith(b"  ")


class Offsets:
    """Where the tokens of a growing text begin, in characters; a part of a character begins where that does."""

    def __init__(self, texts: TokenTexts, known: str = "") -> None:
        """known: the beginning of the text, where it was given and not made of tokens."""
        self._texts = texts
        self._known = known
        self._chars = 0
        self._begun = False

    def next(self, token_id: int) -> int:
        """Of one more token."""
        data, at = self._texts.data(token_id), self._chars
        if data is None:  # in a text only where somebody wrote it
            name = self._texts.text(token_id)
            self._chars += len(name) if self._known.startswith(name, at) else 0
            return at
        if not self._begun and data.startswith(b" ") and self._is_added(token_id):
            data = data[1:]
        self._begun = True
        begun = sum(byte & 0xC0 != 0x80 for byte in data)
        self._chars += begun
        return at - 1 if at and data and data[0] & 0xC0 == 0x80 else at

    def _is_added(self, token_id: int) -> bool:
        """Whether the blank that the first token begins with is the tokenizer's own, and none of the text."""
        if self._known.startswith(" "):
            return self._texts.doubles_blank
        return bool(self._known) or self._texts.drops_blank(token_id)

    def skip_known(self) -> None:
        """The next token is the first behind what was given."""
        self._chars = len(self._known)


@lru_cache(maxsize=4)
def token_texts(tokenizer: Any) -> TokenTexts:
    """Those of a tokenizer, made once."""
    return TokenTexts(tokenizer)


def _decoder(tokenizer: Any) -> str:
    """The tokenizer's decoder as JSON; empty for a tokenizer that is not of the tokenizers package."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    found = json.loads(backend.to_str()).get("decoder") if backend is not None else None
    return json.dumps(found, ensure_ascii=False) if found else ""


@cache
def _byte_letters() -> dict[str, int]:
    """GPT-2's table: printable bytes as themselves, the others as letters from 256 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}

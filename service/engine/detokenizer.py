"""Text of a growing sequence of tokens, and the stop strings in it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

_BROKEN = "\ufffd"  # what a tokenizer makes of bytes that are no character, or not yet


class Decoder(Protocol):
    """What is needed of a tokenizer."""

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool = ...) -> str: ...


class Detokenizer:
    """Decodes incrementally: text once shown never changes.

    Tokens can end in the midst of a character, and some tokenizers drop a leading space from the first token decoded,
    so a few tokens before the new ones are decoded with them and only the difference is shown (as vLLM and TGI do).
    The text of those few is known from the decoding before, so that a token costs one call of the tokenizer.
    Text that may turn out to begin a stop string is held back until it is decided.
    """

    _LEAST = 2  # tokens that are decoded with the new ones, after others were let go
    _MOST = 8  # and before; to let some go takes a call of its own
    _PATIENCE = 8  # tokens; a model may emit bytes that never become a character

    def __init__(self, tokenizer: Decoder, stop: Sequence[str] = ()) -> None:
        self._tokenizer = tokenizer
        self._stop = stop
        self._context: list[int] = []  # the latest tokens whose text is out
        self._before = ""  # their text
        self._new: list[int] = []
        self._held = ""  # what may begin a stop string
        self.text = ""
        self.stopped = False
        self.stopped_by: str | None = None
        """the stop string that ended the text"""

    def push(self, token_ids: Sequence[int], *, last: bool = False) -> str:
        """The text that these tokens add; with ``last`` nothing is held back any longer."""
        piece = "".join([self._fresh(token) for token in token_ids])
        if last and self._new:
            piece += self._show(self._decode(self._context + self._new))
        if self._stop:
            piece = self._until_stop(self._held + piece, last)
        self.text += piece
        return piece

    def _fresh(self, token: int) -> str:
        """The text of one more token and of those held back; none as long as it ends in the midst of a character."""
        self._new.append(token)
        now = self._decode(self._context + self._new)
        if now.endswith(_BROKEN) and len(self._new) < self._PATIENCE:
            return ""
        return self._show(now)

    def _show(self, now: str) -> str:
        """The new tokens become context; returns what they add. now: the text of both."""
        fresh = now[len(self._before) :]
        self._context += self._new
        self._before, self._new = now, []
        if len(self._context) > self._MOST:
            self._shorten()
        return fresh

    def _shorten(self) -> None:
        """Let go of the older tokens of the context, but begin neither in the midst of a character nor without text."""
        for size in range(self._LEAST, self._MOST):
            text = self._decode(self._context[-size:])
            if text and not text.startswith(_BROKEN):
                break
        self._context, self._before = self._context[-size:], text

    def _decode(self, token_ids: list[int]) -> str:
        return self._tokenizer.decode(token_ids, skip_special_tokens=True)

    def _until_stop(self, piece: str, last: bool) -> str:
        """What of ``piece`` can be shown; the rest is held, or behind a stop string."""
        self._held = ""
        found = min(((piece.find(s), s) for s in self._stop if s in piece), default=None)
        if found is not None:
            self.stopped, self.stopped_by = True, found[1]
            return piece[: found[0]]
        if last:
            return piece
        shown = len(piece) - self._undecided(piece)
        self._held = piece[shown:]
        return piece[:shown]

    def _undecided(self, piece: str) -> int:
        """Length of the longest end of ``piece`` that begins a stop string."""
        longest = 0
        for stop in self._stop:
            for size in range(min(len(stop) - 1, len(piece)), longest, -1):
                if piece.endswith(stop[:size]):
                    longest = size
                    break
        return longest

"""Text of a growing sequence of tokens, and the stop strings in it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class Decoder(Protocol):
    """What is needed of a tokenizer."""

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool = ...) -> str: ...


class Detokenizer:
    """Decodes incrementally: text once shown never changes.

    Tokens can end in the midst of a character, and some tokenizers drop a leading space from the first token decoded,
    so a few tokens before the new ones are decoded with them and only the difference is shown (as vLLM and TGI do).
    Text that may turn out to begin a stop string is held back until it is decided.
    """

    _CONTEXT = 6
    _PATIENCE = 8  # tokens; a model may emit bytes that never become a character

    def __init__(self, tokenizer: Decoder, stop: Sequence[str] = ()) -> None:
        self._tokenizer = tokenizer
        self._stop = stop
        self._ids: list[int] = []
        self._start = 0  # first token decoded together with the new ones
        self._done = 0  # tokens whose text is out
        self._held = ""
        self.text = ""
        self.stopped = False

    def push(self, token_ids: Sequence[int], *, last: bool = False) -> str:
        """The text that these tokens add; with ``last`` nothing is held back any longer."""
        self._ids += token_ids
        piece = self._held + self._fresh(last)
        self._held = ""
        found = min((i for i in (piece.find(s) for s in self._stop) if i >= 0), default=-1)
        if found >= 0:
            piece, self.stopped = piece[:found], True
        elif not last:
            keep = self._undecided(piece)
            piece, self._held = piece[: len(piece) - keep], piece[len(piece) - keep :]
        self.text += piece
        return piece

    def _fresh(self, last: bool) -> str:
        if self._done == len(self._ids):
            return ""
        before = self._tokenizer.decode(self._ids[self._start : self._done], skip_special_tokens=True)
        now = self._tokenizer.decode(self._ids[self._start :], skip_special_tokens=True)
        in_character = now.endswith("\ufffd") and len(self._ids) - self._done < self._PATIENCE
        if in_character and not last:
            return ""
        self._start = max(0, len(self._ids) - self._CONTEXT)
        self._done = len(self._ids)
        return now[len(before) :]

    def _undecided(self, piece: str) -> int:
        """Length of the longest end of ``piece`` that begins a stop string."""
        longest = 0
        for stop in self._stop:
            for size in range(min(len(stop) - 1, len(piece)), longest, -1):
                if piece.endswith(stop[:size]):
                    longest = size
                    break
        return longest

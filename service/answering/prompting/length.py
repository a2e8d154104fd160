"""Whether texts can fit a window at all, told without encoding them whole: strangers send them by the megabyte."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tokenizers.models import BPE

from service.errors import PromptTooLong

CHARS_PER_TOKEN = 8
"""Texts of fewer characters for each token of the window are encoded at once: running text has four or five."""
SLICE_CHARS = 1 << 13
CUT_TOKENS = 8
"""that a cut in the midst of a word may add"""


class LengthCheck:
    """Of one tokenizer."""

    def __init__(self, tokenizer: Any, encode: Callable[[str], Sequence[int]]) -> None:
        """encode: a text to its ids."""
        self._encode = encode
        self._longest = _longest_token(tokenizer)

    def __call__(self, texts: Sequence[str], most: int) -> None:
        """Refuse texts that are more than `most` tokens together, for as much work as `most` tokens are.

        Raises PromptTooLong.
        """
        chars = sum(map(len, texts))
        if self._longest is not None and chars > most * self._longest:
            raise _too_long(-(-chars // self._longest), most)
        if chars <= most * CHARS_PER_TOKEN:
            return
        least = 0
        for text in texts:
            for start in range(0, len(text), SLICE_CHARS):
                least += max(0, len(self._encode(text[start : start + SLICE_CHARS])) - CUT_TOKENS)
                if least > most:
                    raise _too_long(least, most)


def _too_long(least: int, most: int) -> PromptTooLong:
    hint = "Shorten it, or use retrieval."
    return PromptTooLong.for_model(most, f"the prompt has at least {least}", hint, "prompt")


def _longest_token(tokenizer: Any) -> int | None:
    """Characters of the longest, None where one token may stand for a word of any length."""
    if not tokenizer.is_fast:
        return None
    model = tokenizer.backend_tokenizer.model
    if not isinstance(model, BPE) or (model.unk_token is not None and not model.byte_fallback):
        return None
    return max(map(len, tokenizer.get_vocab()))

"""Text to token ids: our own, in which control tokens count, and other people's, in which nothing does."""

from __future__ import annotations

import copy
import re
import threading
from functools import lru_cache
from itertools import pairwise
from typing import Any

from tokenizers import Tokenizer

from service.answering.prompting.length import LengthCheck


class Encoder:
    """Text to ids, from any thread.

    A tokenizer must not be used by one thread while another (the engine's, decoding) does: this class works on a copy
    of its own, and encodes other people's text by the words and merges alone, without any token that was added.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = copy.deepcopy(tokenizer)
        self._lock = threading.Lock()
        self._text = _FastText(self.tokenizer) if tokenizer.is_fast else _SlowText(copy.deepcopy(tokenizer))
        self.check_length = LengthCheck(self.tokenizer, self.text)
        """refuses texts that are longer than a window"""
        self.data = lru_cache(maxsize=32)(self.text)
        """`text`, whose last results are kept: questions about a document come together"""

    def template(self, text: str) -> list[int]:
        """Ids of text of our own, special tokens recognised, none added."""
        with self._lock:
            return list(self.tokenizer.encode(text, add_special_tokens=False)) if text else []

    def plain(self, text: str) -> list[int]:
        """Ids of text as the tokenizer's own call gives them: special tokens recognised and added."""
        with self._lock:
            return list(self.tokenizer(text).input_ids)

    def text(self, text: str) -> tuple[int, ...]:
        """Ids of somebody else's text: what looks like a token of control is text."""
        return tuple(self._text.encode(text))


class _FastText:
    """A tokenizer's model, normaliser and splitter; of its added tokens those alone that are blanks."""

    def __init__(self, tokenizer: Any) -> None:
        whole = tokenizer.backend_tokenizer
        self._model = Tokenizer(whole.model)
        self._model.normalizer, self._model.pre_tokenizer = whole.normalizer, whole.pre_tokenizer
        added = tokenizer.added_tokens_decoder
        blanks = {token.content: number for number, token in added.items() if _blank(token.content)}
        self._model.add_tokens([added[number] for number in blanks.values()])
        self._ids = {self._model.token_to_id(content): number for content, number in blanks.items()}
        """of blanks, by those that the reduced tokenizer gives them"""
        self._control = frozenset(added) - frozenset(blanks.values()) - {tokenizer.unk_token_id}

    def encode(self, text: str) -> list[int]:
        """Ids, none of which is a token of control.

        A vocabulary may hold such a token as a word too: there the text is cut around the word's first character.
        """
        (encoding,) = self._model.encode_batch([text], add_special_tokens=False)  # other threads go on meanwhile
        ids = [self._ids.get(number, number) for number in encoding.ids]
        found = [encoding.offsets[i][0] for i, number in enumerate(ids) if number in self._control]
        if not found or len(text) == 1:
            return [number for number in ids if number not in self._control]
        cuts = sorted({0, *found, *(start + 1 for start in found), len(text)})
        return [number for start, end in pairwise(cuts) for number in self.encode(text[start:end])]


class _SlowText:
    """A tokenizer in Python, told to split special tokens; the text is cut inside every other added token too."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._lock = threading.Lock()
        added = [token.content for token in tokenizer.added_tokens_decoder.values()]
        longest_first = sorted((content for content in added if not _blank(content)), key=len, reverse=True)
        self._added = re.compile("|".join(f"(?<={re.escape(c[0])})(?={re.escape(c[1:])})" for c in longest_first))

    def encode(self, text: str) -> list[int]:
        parts = self._added.split(text) if self._added.pattern else [text]
        with self._lock:
            encoded = [
                self._tokenizer.encode(part, add_special_tokens=False, split_special_tokens=True)
                for part in parts
                if part
            ]
        return [number for ids in encoded for number in ids]


def _blank(content: str) -> bool:
    """Whether a token is white space, as some vocabularies add it for the indentation of code."""
    return not content.replace("\u2581", " ").strip()

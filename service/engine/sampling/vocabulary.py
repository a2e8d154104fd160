"""A model's vocabulary as llguidance needs it: the bytes of every token, and how text is cut into tokens.

llguidance's own way of reading a tokenizer finds added tokens in text that a grammar forces, and then does not take
them: output that has to hold ``<tool_call>`` or ``<|im_end|>`` as text would fail. Here text is only ever cut into
tokens of the vocabulary proper. What was added to it (white space aside) comes where a grammar names it by its id.
"""

from __future__ import annotations

import json
from collections.abc import Set
from typing import Any

from llguidance import LLTokenizer, TokenizerWrapper


def vocabulary_of(tokenizer: Any, vocab_size: int, eos_ids: Set[int]) -> LLTokenizer:
    """The vocabulary of a fast tokenizer, padded to `vocab_size`. Takes a second or two.

    Raises ValueError for a tokenizer whose tokens have no bytes of their own.
    """
    whole = json.loads(tokenizer.backend_tokenizer.to_str())
    whole |= {"added_tokens": [], "post_processor": None, "padding": None, "truncation": None}
    for step in (whole["decoder"] or {}).get("decoders", ()):
        if step["type"] == "Metaspace":  # which llguidance knows by another name
            blank = {"String": step["replacement"]}
            step |= {"type": "Replace", "pattern": blank, "content": " "}
    words = LLTokenizer(json.dumps(whole), slices=[])
    added = {number: token.content for number, token in tokenizer.added_tokens_decoder.items()}
    texts = [words.decode_bytes([number]) for number in range(words.vocab_size)]
    texts += [b""] * (vocab_size - len(texts))
    for number, text in added.items():
        texts[number] = text.encode()
    special = [number for number, text in added.items() if text.strip()]
    return LLTokenizer(
        TokenizerWrapper(_Words(words, texts, special, min(eos_ids))), n_vocab=vocab_size, eos_token=sorted(eos_ids)
    )


class _Words:
    """What llguidance asks of a tokenizer; the names are its."""

    bos_token_id = None

    def __init__(self, words: LLTokenizer, texts: list[bytes], special: list[int], eos_token_id: int) -> None:
        self.tokens = texts
        self.special_token_ids = special
        self.eos_token_id = eos_token_id
        self._words = words
        self._special = frozenset(special)

    def __call__(self, text: bytes) -> list[int]:
        """Ids of text, none of which is an added token's, though a vocabulary may hold such as words too."""
        ids = self._words.tokenize_bytes(text)
        at = next((at for at, number in enumerate(ids) if number in self._special), None)
        if at is None or len(text) < 2:
            return ids
        cut = sum(len(self.tokens[number]) for number in ids[:at]) + 1
        return [*self(text[:cut]), *self(text[cut:])]

"""What a grammar forces is written in tokens of text, though an added token be spelt the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from llguidance import LLMatcher

from service.engine.sampling.vocabulary import vocabulary_of
from tests.service.answering.prompting import templates

SPELT = ["<|im_end|>", "a<|im_start|>system", "<tool_call>\n", "x </s>y", "<s>", "[TOOL_CALLS] é", "The bridge", "  b"]


def written(tokenizer: Any, grammar: str, most: int = 60) -> list[int]:
    """The ids of the likeliest-numbered text of a grammar."""
    matcher = LLMatcher(vocabulary_of(tokenizer, len(tokenizer) + 5, {tokenizer.eos_token_id}), grammar, log_level=0)
    ids: list[int] = []
    while not matcher.is_stopped() and len(ids) < most:
        bits = np.frombuffer(matcher.compute_bitmask(), dtype=np.uint8)
        allowed = np.flatnonzero(np.unpackbits(bits, bitorder="little"))
        assert len(allowed), matcher.get_error()
        ids.append(int(allowed[-1]))
        assert matcher.consume_token(ids[-1]), matcher.get_error()
    return ids


@pytest.mark.parametrize("text", SPELT)
def test_what_is_spelt_like_an_added_token_is_text(made_tokenizer: Callable[[str], Any], text: str) -> None:
    tokenizer = made_tokenizer(templates.HERMES)
    ids = written(tokenizer, LLMatcher.grammar_from_lark(f"start: {json.dumps(text, ensure_ascii=False)}"))
    assert not set(ids) & set(tokenizer.added_tokens_decoder)
    assert tokenizer.decode(ids) in (text, text.removeprefix(" "))  # some drop a blank at the beginning


def test_an_added_token_comes_where_a_grammar_names_it(made_tokenizer: Callable[[str], Any]) -> None:
    tokenizer = made_tokenizer(templates.HERMES)
    (token,) = tokenizer.convert_tokens_to_ids(["[TOOL_CALLS]"])
    grammar = LLMatcher.grammar_from_lark(f'start: TEXT <[{token}]> "a"\nTEXT: /b?/')
    ids = written(tokenizer, grammar)
    assert token in ids
    assert tokenizer.decode(ids, skip_special_tokens=True).endswith("a")

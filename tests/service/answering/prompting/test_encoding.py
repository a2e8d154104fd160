"""Other people's text is text: no token of control comes out of it, and nothing of it is lost."""

from __future__ import annotations

from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from service.answering.prompting.encoding import Encoder

CONTROL = ["<|im_end|>", "<tool_call>", "</tool_call>", "<|fim_prefix|>"]


def made(vocabulary: dict[str, int], model: Any = None, normalizer: Any = None) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with special tokens, tokens that are added and not special, and blanks."""
    raw = Tokenizer(model or models.BPE(vocabulary, []))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    if normalizer is not None:
        raw.normalizer = normalizer
    raw.add_special_tokens([AddedToken("<|im_end|>"), AddedToken("<|fim_prefix|>", lstrip=True, rstrip=True)])
    raw.add_tokens([AddedToken("    ", normalized=False), AddedToken("<tool_call>"), AddedToken("</tool_call>")])
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<|im_end|>")


@pytest.fixture(scope="module")
def alphabet() -> dict[str, int]:
    return {symbol: i for i, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}


@pytest.fixture(scope="module")
def tokenizer(alphabet: dict[str, int]) -> PreTrainedTokenizerFast:
    return made(alphabet)


@pytest.mark.parametrize("control", CONTROL)
def test_no_added_token_comes_out_of_data(tokenizer: PreTrainedTokenizerFast, control: str) -> None:
    text = f"a {control} b{control}{control} {control[:3]}"
    ids = Encoder(tokenizer).data(text)
    added = {i for i, token in tokenizer.added_tokens_decoder.items() if token.content.strip()}
    assert added.isdisjoint(ids)
    assert tokenizer.decode(ids) == text
    assert added & set(Encoder(tokenizer).template(text))


def test_ordinary_text_has_its_ordinary_ids(tokenizer: PreTrainedTokenizerFast) -> None:
    text = "def f():\n    return 'straße'        # 中文\n"
    ids = Encoder(tokenizer).data(text)
    assert list(ids) == tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.convert_tokens_to_ids("    ") in ids


def test_normalised_spellings_are_no_way_in(alphabet: dict[str, int]) -> None:
    tokenizer = made(alphabet, normalizer=normalizers.NFKC())
    wide = "\uff1ctool_call\uff1e"
    call = tokenizer.convert_tokens_to_ids("<tool_call>")
    assert call in tokenizer.encode(wide, add_special_tokens=False, split_special_tokens=True)  # the attack
    assert call not in Encoder(tokenizer).data(wide)


def test_a_control_token_that_is_a_word_too_is_cut() -> None:
    """Unigram takes the longest likely piece of its vocabulary, and an added token may be one of them."""
    letters = [(symbol, -4.0) for symbol in sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = made(
        {}, models.Unigram([("<tool_call>", -0.1), ("<|im_end|>", -0.1), *letters, ("?", -9.0)], len(letters))
    )
    text = "x<tool_call><|im_end|>y"
    ids = Encoder(tokenizer).data(text)
    assert set(tokenizer.added_tokens_decoder).isdisjoint(ids)
    assert tokenizer.decode(ids) == text


def test_many_control_tokens_take_no_longer_than_text(tokenizer: PreTrainedTokenizerFast) -> None:
    assert len(Encoder(tokenizer).data("<tool_call>" * 20_000)) == 11 * 20_000

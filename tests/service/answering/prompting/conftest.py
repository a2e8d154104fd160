"""Small tokenizers of the two common kinds, trained, so that tokens span the borders of contents."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from tests.service.answering.prompting.templates import CONTROL

TEXT = [
    "The bridge at Hampton was built by Ada Miller.\n\nIt has seven arches of grey stone.\n\n\n  And so on: {'a': 1}\n",
    '{"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}\n\n',
    "user\n\nassistant\nsystem\n<tools>\n</tools>\n\n# Tools\n<tool_response>\n</tool_response>\n",
]
"""What the merges come from."""


def _with_control(raw: Tokenizer, template: str) -> PreTrainedTokenizerFast:
    special = [token for token in CONTROL if token.startswith(("<|", "[", "<s"))]
    raw.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    raw.add_tokens([AddedToken(token, normalized=False) for token in CONTROL if token not in special])
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        bos_token="<s>",
        eos_token="<|im_end|>",
        additional_special_tokens=special,
        chat_template=template,
    )


def _byte_level(template: str) -> PreTrainedTokenizerFast:
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    raw.train_from_iterator(TEXT * 4, trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet))
    return _with_control(raw, template)


def _with_blanks(template: str) -> PreTrainedTokenizerFast:
    """As SentencePiece's: a blank in front of the first word alone."""
    raw = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    raw.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    raw.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="first")])
    alphabet = sorted({sign for text in TEXT for sign in text} | {chr(code) for code in range(32, 127)})
    specials = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=900, initial_alphabet=alphabet, special_tokens=specials)
    raw.train_from_iterator(TEXT * 4, trainer)
    learned = json.loads(raw.to_str())["model"]  # without what the trainer adds as special
    merges = [tuple(pair) for pair in learned["merges"]]
    whole = Tokenizer(models.BPE(learned["vocab"], merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    whole.pre_tokenizer, whole.decoder = raw.pre_tokenizer, raw.decoder
    return _with_control(whole, template)


@pytest.fixture(scope="session", params=[_byte_level, _with_blanks], ids=["bytes", "blanks"])
def made_tokenizer(request: pytest.FixtureRequest) -> Callable[[str], Any]:
    """Makes a tokenizer with this chat template."""
    made: dict[str, Any] = {}

    def make(template: str) -> Any:
        return made.setdefault(template, request.param(template))

    return make

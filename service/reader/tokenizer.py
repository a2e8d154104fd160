"""The reader's tokenizer: byte-level BPE, digits in groups of up to three, and its special tokens."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

BOS, END, NONE, QUESTION, ANSWER = "<|bos|>", "<|end|>", "<|none|>", "<|question|>", "<|answer|>"
SPECIAL = (BOS, END, NONE, QUESTION, ANSWER)
REFERENCES = 2048
"""Reference tokens ``<|r0|>`` … ``<|r2047|>``: more sentences than fit into 48K tokens of ordinary prose."""

NOT_STATED = "The documents do not say."
"""The sentence behind ``<|none|>`` at the head of every prompt, quoted where nothing else answers."""

_PIECES = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

CHAT_TEMPLATE = (
    "{{ bos_token }}<|none|> " + NOT_STATED + "<|end|>"
    "{%- set n = namespace(i=0, lines=[]) -%}"
    "{%- for message in messages -%}{%- for line in message['content'].split('\\n') -%}"
    "{%- if line.strip() -%}{%- set n.lines = n.lines + [line.strip()] -%}{%- endif -%}"
    "{%- endfor -%}{%- endfor -%}"
    "{%- for line in n.lines[:-1] -%}{{ '<|r' ~ (n.i % 2048) ~ '|> ' ~ line ~ '<|end|>' }}"
    "{%- set n.i = n.i + 1 -%}{%- endfor -%}"
    "{{ '<|question|> ' ~ n.lines[-1] }}{%- if add_generation_prompt -%}<|answer|>{%- endif -%}"
)
"""Every line of the conversation is a sentence to quote from, the last one is the question."""


def reference(number: int) -> str:
    """The text of a reference token, 0-based."""
    return f"<|r{number}|>"


def train(texts: Iterable[str], vocab_size: int = 12_288) -> Tokenizer:
    """A tokenizer of `vocab_size` byte-level BPE tokens trained on `texts`, special tokens behind them.

    Every number of up to three digits becomes one token, so that copied numbers seldom repeat a pair.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[],
        show_progress=False,
    )
    numbers = [" ".join(f"{n:0{width}d}" for n in range(10**width)) for width in (2, 3)]
    tokenizer.train_from_iterator([*texts, *numbers * 100], trainer)
    tokenizer.add_special_tokens(
        [AddedToken(t, special=True, normalized=False) for t in (*SPECIAL, *map(reference, range(REFERENCES)))]
    )
    return tokenizer


def save(tokenizer: Tokenizer, folder: Path, max_length: int) -> Any:
    """Write `tokenizer` so that transformers' AutoTokenizer loads it, and return it so loaded."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=END,
        pad_token=END,
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(folder, save_jinja_files=False)
    return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)

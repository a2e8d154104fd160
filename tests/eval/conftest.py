"""Fixtures of the evaluation's tests: a byte tokenizer, a fake engine, a small text folder."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from eval.errors import EvalError
from eval.harness.engines import Reply
from eval.harness.prompting import ModelInput


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


class FakeEngine:
    """Answers with the first number of the prompt behind "is"; each `wrong_every`-th prompt wrongly.

    Refuses prompts longer than its window, as an engine does.
    """

    def __init__(self, name: str = "dense", *, window: int = 100_000, wrong_every: int = 0, drafter: str = "none"):
        self.name = name
        self.window = window
        self.asked = 0
        self._wrong_every = wrong_every
        self._drafter = drafter

    def describe(self) -> dict:
        return {
            "kind": "folio",
            "model": "fake",
            "attention": "dense",
            "drafter": self._drafter,
            "retrieval": False,
            "same_tokens": True,
            "dtype": "float32",
            "device": "cpu",
        }

    def answer(self, prompt: ModelInput, new_tokens: int) -> Reply:
        self.asked += 1
        if len(prompt.ids) + new_tokens > self.window:
            raise EvalError(f"the prompt has {len(prompt.ids)} tokens; this model holds {self.window}")
        found = re.search(r"is:? (\d+)", prompt.text)
        number = found.group(1) if found else "0"
        if self._wrong_every and int(number[-1]) % self._wrong_every == 0:
            number = "1" + number
        return Reply(
            tuple(map(ord, number)), number, "stop", len(prompt.ids), 0.01, 0.02, 100.0, {"accepted_tokens": 1}
        )


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return byte_tokenizer()


@pytest.fixture(scope="session")
def fake_engine() -> type[FakeEngine]:
    return FakeEngine


@pytest.fixture(scope="session")
def text_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three short books of made-up sentences."""
    folder = tmp_path_factory.mktemp("books")
    for book in range(3):
        sentences = [
            f"In chapter {n} of volume {book} the {w}keeper repaired the {w[::-1]}lantern beside the {w}harbour wall."
            for n, w in enumerate(f"q{chr(97 + i // 26)}{chr(97 + i % 26)}{chr(97 + book)}" for i in range(120))
        ]
        (folder / f"book{book}.txt").write_text("\n\n".join(sentences), encoding="utf-8")
    return folder

"""Tokens of long texts, and in another process."""

from __future__ import annotations

import numpy as np
import pytest

from retrieval.embedding import tokens as module
from retrieval.embedding.embedder import SentenceEmbedder
from retrieval.embedding.tokens import Tokens


@pytest.fixture(scope="module")
def tokens() -> Tokens:
    return SentenceEmbedder().tokens


TEXTS = [
    "The swan drifted under the bridge of Avignon, unhurried. " * 60,
    "&" * 3000,
    "word\n\n" * 500,
    "x" * 5000,
    "ärger " * 400 + "日本語" * 300,
    "",
]


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_in_slices_has_the_tokens_of_the_whole(
    tokens: Tokens, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tokens.starts(text)
    monkeypatch.setattr(module, "SLICE_CHARS", 700)
    sliced = tokens.starts(text)
    if text[:1] != "x":  # an endless word, which is cut, is one unknown token only where it is long
        np.testing.assert_array_equal(sliced, whole)
    assert (np.diff(sliced) >= 0).all()


def test_another_process_counts_the_same(tokens: Tokens) -> None:
    again = Tokens.restored(tokens.saved())
    for text in TEXTS:
        np.testing.assert_array_equal(again.starts(text), tokens.starts(text))

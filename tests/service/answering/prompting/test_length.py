"""Texts that cannot fit are refused for less work than encoding them."""

from __future__ import annotations

from typing import Any

import pytest

from service.answering.prompting.encoding import Encoder
from service.answering.prompting.length import CHARS_PER_TOKEN, LengthCheck
from service.errors import PromptTooLong


@pytest.fixture(scope="module")
def encoder(reader_tokenizer: Any) -> Encoder:
    return Encoder(reader_tokenizer)


@pytest.mark.parametrize("text", ["The bridge has 7 arches & a toll. ", "&", "a", " ", "é", "日本", "\n"])
@pytest.mark.parametrize("most", [100, 2000])
def test_what_is_refused_does_not_fit_and_what_fits_is_not_refused(encoder: Encoder, text: str, most: int) -> None:
    for chars in (most, most * 3, most * 7, most * 9, most * 40):
        whole = (text * chars)[:chars]
        tokens = len(encoder.text(whole))
        try:
            encoder.check_length([whole], most)
        except PromptTooLong:
            assert tokens > most
        else:
            assert tokens <= most or chars <= most * CHARS_PER_TOKEN or tokens <= most * 1.1


def test_the_work_is_bounded_by_the_window(reader_tokenizer: Any) -> None:
    seen: list[int] = []

    def encode(text: str) -> list[int]:
        seen.append(len(text))
        return [0] * (len(text) // 4)

    check = LengthCheck(reader_tokenizer, encode)
    with pytest.raises(PromptTooLong, match=r"is 10000 tokens; the prompt has at least \d+"):
        check(["word " * 2_000_000], 10_000)
    assert sum(seen) < 100_000
    check(["word " * 10_000], 10_000)
    assert sum(seen) < 100_000, "running text of a length that may fit is not encoded twice"


def test_all_texts_count_together(encoder: Encoder) -> None:
    part = "The bridge has seven arches. " * 40
    encoder.check_length([part] * 2, 1000)
    with pytest.raises(PromptTooLong):
        encoder.check_length([part] * 60, 1000)

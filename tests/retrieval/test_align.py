"""Quotations found in spite of what copying does to them, and not found when they say something else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval.align import AlignableText, align, canonical
from retrieval.parsing import parse
from retrieval.parsing.sentences import sentences

TEXT = (
    "He said: “The difﬁcult well-known bridge—built in 1871—was never an un-\nhappy sight.”\r\n"
    "  It had\u00a0cost £3,500; _nobody_ paid.  The bridge was sold. The bridge was burnt."
)


@pytest.mark.parametrize(
    ("quote", "slice_"),
    [
        ("The bridge was sold.", "The bridge was sold."),
        ('"The difficult well-known bridge -- built in 1871', "“The difﬁcult well-known bridge—built in 1871"),
        ("was never an unhappy sight.", "was never an un-\nhappy sight."),
        ("it had cost £3,500; nobody paid", "It had\u00a0cost £3,500; _nobody_ paid"),
        ("“It had cost £3,500”", "It had\u00a0cost £3,500"),
        ("built in 1871.", "built in 1871"),
    ],
)
def test_found(quote: str, slice_: str) -> None:
    start, end = align(quote, TEXT)  # type: ignore[misc]
    assert TEXT[start:end] == slice_


@pytest.mark.parametrize(
    "quote",
    [
        "happy sight",
        "built in 1872",
        "built in 187",
        "the bridge was sold the bridge",
        "cost £3.500",
        "",
        " . ",
        "zebra",
    ],
)
def test_not_found(quote: str) -> None:
    assert align(quote, TEXT) is None


def test_the_nearest_of_several() -> None:
    second = TEXT.rindex("The bridge was")
    assert align("The bridge was", TEXT) == (second - 21, second - 7)
    assert align("the  bridge was", TEXT, near=len(TEXT)) == (second, second + 14)


@given(st.text(max_size=60), st.text(min_size=1, max_size=20), st.text(max_size=60))
def test_a_span_always_says_the_quote(before: str, quote: str, after: str) -> None:
    text = before + " " + quote + " " + after
    span = align(quote, text)
    if span is not None:
        assert canonical(text[slice(*span)])[0].strip(" \u2013") in canonical(quote)[0]


def corpus_sentences(shared: Path) -> list[tuple[AlignableText, int, int]]:
    found = []
    for name in ("news_from_nowhere.txt", "introduction_to_mathematics.pdf"):
        text = AlignableText(parse((shared / "corpus" / name).read_bytes(), name).text)
        spans = [(s, e) for s, e in sentences(text.text) if 40 <= e - s <= 400]
        counts: dict[str, int] = {}
        for start, end in spans:
            key = canonical(text.text[start:end])[0]
            counts[key] = counts.get(key, 0) + 1
        found += [(text, s, e) for s, e in spans if counts[canonical(text.text[s:e])[0]] == 1]
    return found


def mangle(quote: str, rng: np.random.Generator) -> str:
    """What PDF viewers, word processors and models do to a quotation; two to four of them at once."""
    words = quote.split()

    def hyphenate(text: str) -> str:
        long = [word for word in words if len(word) > 7 and word.isalpha()]
        if not long:
            return text
        word = str(rng.choice(long))
        cut = int(rng.integers(3, len(word) - 2))
        return text.replace(word, f"{word[:cut]}-\n{word[cut:]}", 1)

    ways = [
        lambda text: " ".join(text.split()),
        lambda text: text.replace(" ", "\n", 3).replace(" ", "   ", 2),
        lambda text: text.replace(" ", "\u00a0"),
        hyphenate,
        lambda text: text.replace("ffi", "ﬃ").replace("fi", "ﬁ").replace("fl", "ﬂ").replace("ff", "ﬀ"),
        lambda text: text.replace('"', "”").replace("“", '"').replace("'", "’"),
        lambda text: text.replace("--", "—").replace("—", " – "),
        lambda text: text.upper(),
        lambda text: text.lower(),
        lambda text: f"“{text}”",
        lambda text: text.replace("_", ""),
    ]
    for way in rng.choice(len(ways), size=int(rng.integers(2, 5)), replace=False):
        quote = ways[way](quote)
    return quote


def spoil(quote: str, rng: np.random.Generator) -> str | None:
    """The same quotation saying something else."""
    words = quote.split(" ")
    at = int(rng.integers(1, max(2, len(words) - 1)))
    way = int(rng.integers(0, 6))
    if way == 0:
        words[at] = "zebra"
    elif way == 1:
        del words[at]
    elif way == 2:
        words.insert(at, "not")
    elif way == 3 and len(words) > 3:
        words[at], words[at - 1] = words[at - 1], words[at]
    elif way == 4:
        letters = [i for i, ch in enumerate(quote) if ch.isalnum()]
        i = int(rng.choice(letters))
        return quote[:i] + ("7" if quote[i] != "7" else "8") + quote[i + 1 :]
    elif way == 5:
        return quote[1:] if quote[0].isalnum() and quote[1].isalnum() else None
    spoiled = " ".join(words)
    return spoiled if canonical(spoiled)[0] != canonical(quote)[0] else None


def test_mangled_quotes_of_the_corpus(shared: Path) -> None:
    rng = np.random.default_rng(8)
    known = corpus_sentences(shared)
    wrong = []
    for position in rng.choice(len(known), size=500, replace=False):
        text, start, end = known[position]
        quote = mangle(text.text[start:end], rng)
        span = text.align(quote)
        # marks around the quotation and a stop at its end may be left out of the span
        if span is None or canonical(text.text[slice(*span)])[0].strip(" \"'.,;:-\u2013") != canonical(
            text.text[start:end]
        )[0].strip(" \"'.,;:-\u2013"):
            wrong.append((quote, span))
    assert len(wrong) <= 5, wrong[:3]


def test_no_near_miss_is_verified(shared: Path) -> None:
    rng = np.random.default_rng(9)
    known = corpus_sentences(shared)
    flat = {text: " ".join(text.text.split()) for text in {text for text, _, _ in known}}
    tried = 0
    while tried < 500:
        text, start, end = known[int(rng.integers(len(known)))]
        quote = spoil(text.text[start:end], rng)
        if quote is None or " ".join(quote.split()) in flat[text]:
            continue  # by chance something that the text does say
        tried += 1
        assert text.align(mangle(quote, rng)) is None, quote

"""Quotations found in spite of what copying and printing do to them, and not found when they say something else."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval.parsing import parse
from retrieval.parsing.sentences import sentences
from service.answering.support.alignment import align

TEXT = (
    "The exam-\nple of ﬁnesse — “well-\nknown” in 1887 — costs 1234 coins.  The café was closed.\n"
    "A second sentence follows, and it isn’t long."
)
BRIDGE = (
    "He said: “The difﬁcult well-known bridge—built in 1871—was never an un-\nhappy sight.”\r\n"
    "  It had\u00a0cost £3,500; _nobody_ paid.  The bridge was sold. The bridge was burnt. **No** bridge* is_left_here."
)


@pytest.mark.parametrize(
    ("quote", "found"),
    [
        ("example of finesse", "exam-\nple of ﬁnesse"),
        ('finesse - "well-known" in 1887', "ﬁnesse — “well-\nknown” in 1887"),
        ("exam- ple of", "exam-\nple of"),
        ("Example of finesse", "exam-\nple of ﬁnesse"),
        ("costs 1234 coins. The cafe\u0301", "costs 1234 coins.  The café"),
        ("it isn't long,", "it isn’t long"),
        ("in 1887 -- costs", "in 1887 — costs"),
    ],
)
def test_alignment_forgives_printing(quote: str, found: str) -> None:
    span = align(quote, TEXT)
    assert span is not None
    assert TEXT[slice(*span)] == found


@pytest.mark.parametrize(
    "quote",
    [
        "costs 123",
        "costs 12345 coins",
        "in 1888",
        "The cafe was closed",
        "example in finesse",
        "isnt long",
        "second  sentenc",
        "",
    ],
)
def test_alignment_forgives_nothing_else(quote: str) -> None:
    assert align(quote, TEXT) is None


def test_superscripts_are_not_digits() -> None:
    assert align("a field of 102 units", "a field of 10² units") is None


@pytest.mark.parametrize(
    ("quote", "found"),
    [
        ("The bridge was sold.", "The bridge was sold."),
        ('"The difficult well-known bridge -- built in 1871', "“The difﬁcult well-known bridge—built in 1871"),
        ("was never an unhappy sight.", "was never an un-\nhappy sight."),
        ("it had cost £3,500; nobody paid", "It had\u00a0cost £3,500; _nobody_ paid"),
        ("It had cost £3,500; *nobody* paid", "It had\u00a0cost £3,500; _nobody_ paid"),
        ("“It had cost £3,500”", "It had\u00a0cost £3,500"),
        ("'nobody paid.'", "nobody_ paid."),
        ("built in 1871.", "built in 1871"),
        ("No bridge is_left_here", "No** bridge* is_left_here"),
    ],
)
def test_found(quote: str, found: str) -> None:
    span = align(quote, BRIDGE)
    assert span is not None
    assert BRIDGE[slice(*span)] == found


@pytest.mark.parametrize(
    "quote",
    [
        "happy sight",
        "never an un",
        "built in 1872",
        "built in 187",
        "ridge was sold",
        "the bridge was sold the bridge",
        "cost £3.500",
        "THE BRIDGE WAS SOLD",
        "is left here",
        "isleft",
        " . ",
        "“”",
        "zebra",
    ],
)
def test_not_found(quote: str) -> None:
    assert align(quote, BRIDGE) is None


def test_the_next_of_several() -> None:
    first, second = BRIDGE.index("The bridge was"), BRIDGE.rindex("The bridge was")
    assert align("The bridge was", BRIDGE) == (first, first + 14)
    assert align("the  bridge was", BRIDGE, first + 1) == (second, second + 14)


def test_scripts_without_spaces_have_no_words_to_cut() -> None:
    assert align("行った。", "彼は行った。") == (2, 6)
    assert align("ridge", "橋bridge") is None


@pytest.mark.parametrize("run", [" ", "\u00ad", "-", "_", "a-\n", "\n", "''"])
def test_no_text_takes_long(run: str) -> None:
    text = "a -" + run * (200_000 // len(run))
    started = time.process_time()
    assert align("a - b ab", text) is None
    assert align("ab" * 200, text) is None
    assert time.process_time() - started < 5


@given(st.text(max_size=60), st.text(max_size=200))
def test_alignment_never_fails_and_is_in_bounds(quote: str, text: str) -> None:
    span = align(quote, text)
    if span is not None:
        assert 0 <= span[0] < span[1] <= len(text)


def corpus_sentences(shared: Path) -> list[tuple[str, int, int]]:
    """(text, start, end) of the sentences of two books that occur once."""
    found = []
    for name in ("news_from_nowhere.txt", "introduction_to_mathematics.pdf"):
        text = parse((shared / "corpus" / name).read_bytes(), name).text
        spans = [(s, e) for s, e in sentences(text) if 40 <= e - s <= 400]
        counts: dict[str, int] = {}
        for start, end in spans:
            key = plain(text[start:end])
            counts[key] = counts.get(key, 0) + 1
        found += [(text, s, e) for s, e in spans if counts[plain(text[s:e])] == 1]
    return found


def plain(text: str) -> str:
    """Its letters and digits."""
    return "".join(filter(str.isalnum, text)).lower()


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
    return spoiled if plain(spoiled) != plain(quote) else None


def test_mangled_quotations_of_the_corpus(shared: Path) -> None:
    """200 quotations: at least 99% at the right span."""
    rng = np.random.default_rng(8)
    known = corpus_sentences(shared)
    wrong = []
    for position in rng.choice(len(known), size=80, replace=False):
        text, start, end = known[position]
        quote = mangle(text[start:end], rng)
        span = align(quote, text)
        if span is None or plain(text[slice(*span)]) != plain(text[start:end]):
            wrong.append((quote, span))
    assert len(wrong) <= 2, wrong[:3]


def test_no_near_miss_is_verified(shared: Path) -> None:
    rng = np.random.default_rng(9)
    known = corpus_sentences(shared)
    flat = {text: " ".join(text.split()) for text in {text for text, _, _ in known}}
    tried = 0
    while tried < 80:
        text, start, end = known[int(rng.integers(len(known)))]
        quote = spoil(text[start:end], rng)
        if quote is None or " ".join(quote.split()) in flat[text]:
            continue  # by chance something that the text does say
        tried += 1
        assert align(mangle(quote, rng), text) is None, quote

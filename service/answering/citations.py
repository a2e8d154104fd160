"""Citations: the words of an answer, found again in the stored text.

A quotation is aligned by turning it into a pattern that forgives what parsing and printing do to text (line
breaks, hyphenation at line ends, ligatures, the shapes of quotes and dashes) and nothing else: a changed
word, digit or letter does not match. The pattern runs over the stored text, so a match *is* the exact span.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from retrieval.parsing.sentences import sentences
from service.answering.passages import Passage, Span

DASHES = "-\u2010\u2011\u2012\u2013\u2014\u2015\u2212"
DOUBLE_QUOTES = '"\u201c\u201d\u201e\u00ab\u00bb'
SINGLE_QUOTES = "'\u2018\u2019\u201a\u0060\u00b4"
LIGATURES = {
    "ffi": "\ufb03",
    "ffl": "\ufb04",
    "ff": "\ufb00",
    "fi": "\ufb01",
    "fl": "\ufb02",
    "st": "\ufb06",
}
UNLIGATURE = {ligature: letters for letters, ligature in LIGATURES.items()} | {"\ufb05": "st"}

BREAK = rf"(?:\u00ad|\u200b|[{DASHES[:3]}][ \t]*\r?\n\s*)?"
"""What may part two letters of one word in stored text: a soft hyphen, or a hyphen at a line's end."""

QUOTATION = re.compile(
    r'"([^"\n]{2,2000})"|\u201c([^\u201c\u201d]{2,2000})\u201d|\u00ab([^\u00ab\u00bb]{2,2000})\u00bb'
)
MARKER = re.compile(r"\[(\d{1,4}(?:\s*,\s*\d{1,4})*)\]")
ELISION = re.compile(r"\s*(?:\[\s*(?:\u2026|\.\s?\.\s?\.)\s*\]|\u2026|\.\s?\.\s?\.)\s*")
WORD = re.compile(r"\w+(?:['\u2019]\w+)*")
COMMON_WORDS = (
    "a an and are as at be been but by can did do does for from had has have he her his how i if in into is "
    "it its not of on one or our she so such than that the their them then there these they this to was we "
    "were what when where which who why will with would you your document documents"
)
COMMON = frozenset(COMMON_WORDS.split())
SHORTEST_UNMARKED = 3
"""Words that a quotation without a marker needs to count as a citation and not as a manner of speaking."""
SUPPORT = 0.6
"""Share of an answer sentence's content words that one sentence of the evidence must hold to support it."""


def align(quote: str, text: str, start: int = 0) -> tuple[int, int] | None:
    """The first span of `text` from `start` on that `quote` repeats, as character offsets, or None."""
    quote = quote.strip()
    if not quote:
        return None
    pattern = _pattern(quote)
    found = pattern.search(text, start) if pattern else None
    if found is None:
        trimmed = quote.rstrip(".,;:!? ")
        if trimmed == quote or not trimmed:
            return None
        found = _pattern(trimmed).search(text, start)
    return (found.start(), found.end()) if found else None


def align_elided(quote: str, text: str) -> list[tuple[int, int]]:
    """Spans of a quotation that leaves words out with an ellipsis: one a fragment, in order, or none."""
    whole = align(quote, text)
    if whole:
        return [whole]
    fragments = [f for f in ELISION.split(quote) if f]
    if len(fragments) < 2 or any(len(WORD.findall(f)) < 2 for f in fragments):
        return []
    spans: list[tuple[int, int]] = []
    for fragment in fragments:
        span = align(fragment, text, spans[-1][1] if spans else 0)
        if span is None:
            return []
        spans.append(span)
    return spans


def spans_in_answer(answer: str, passages: Sequence[Passage]) -> list[Span]:
    """The spans that quotations and ``[n]`` markers of an answer cite, by their place in the answer.

    A quotation that stands in none of the passages yields a span with its own words, which will not verify. A
    marker without a quotation cites the sentence of its passage that shares most words with the answer's.
    """
    spans: list[Span] = []
    served: set[int] = set()  # markers that stand for a quotation
    for quotation in QUOTATION.finditer(answer):
        quote = next(group for group in quotation.groups() if group is not None)
        marker = _marker_after(answer, quotation.end())
        labels = _labels(marker) if marker else []
        found = _cite_quotation(quote, labels, passages)
        if not found and (labels or len(WORD.findall(quote)) >= SHORTEST_UNMARKED):
            found = _cite_nothing(quote, labels, passages)
        if found and marker:
            served.add(marker.start())
        spans += [replace(s, answer_start=quotation.start(), answer_end=quotation.end()) for s in found]
    for marker in MARKER.finditer(answer):
        if marker.start() not in served:
            claim = _sentence_around(answer, marker.start())
            for label in _labels(marker):
                if 1 <= label <= len(passages):
                    span = _cite_reference(claim, label, passages[label - 1])
                    spans.append(replace(span, answer_start=marker.start(), answer_end=marker.end()))
    spans.sort(key=lambda s: (s.answer_start, s.start))
    return spans


def unsupported(answer: str, supported: Sequence[Span], passages: Sequence[Passage]) -> list[tuple[int, int]]:
    """Sentences of the answer, as offsets, that neither cite (`supported`) nor repeat the evidence."""
    bare = []
    for start, end in sentences(answer):
        if any(span.answer_start < end and span.answer_end > start for span in supported):
            continue
        words = content_words(answer[start:end])
        evidence = ((p.text, a, b) for p in passages for a, b in _sentences(p.text))
        if words and not any(_covered(words, *sentence) >= SUPPORT for sentence in evidence):
            bare.append((start, end))
    return bare


def content_words(text: str) -> frozenset[str]:
    """Lower-case words that carry meaning."""
    return frozenset(word.lower() for word in WORD.findall(MARKER.sub(" ", text))) - COMMON


@lru_cache(maxsize=256)
def _pattern(quote: str) -> re.Pattern[str]:
    """A pattern for the stored forms of a quotation."""
    quote = "".join(UNLIGATURE.get(c, c) for c in unicodedata.normalize("NFC", quote))
    broken_word = rf"(?<=\w)[{DASHES[:3]}]\s+(?=[a-z])|\u00ad"
    quote = re.sub(broken_word, "\u00ad", quote)
    units = [_unit(token, first=at == 0) for at, token in enumerate(_tokens(quote))]
    joined = []
    for at, (unit, is_letter) in enumerate(units):
        joined.append(unit)
        if is_letter and at + 1 < len(units) and units[at + 1][1]:
            joined.append(BREAK)
    left = r"(?<!\w)" if quote[0].isalnum() else ""
    right = r"(?!\w)" if quote[-1].isalnum() else ""
    return re.compile(left + "".join(joined) + right)


def _tokens(quote: str) -> list[str]:
    """Characters, with white space, dashes, ellipses and would-be ligatures as one each."""
    return re.findall(rf"\s+|[{DASHES}]+|\u2026|\.\s?\.\s?\.|ffi|ffl|ff|fi|fl|st|.", quote, flags=re.DOTALL)


def _unit(token: str, *, first: bool) -> tuple[str, bool]:
    """The pattern of one token, and whether it is a letter of a word."""
    if token.isspace():
        return r"\s+", False
    if token[0] in DASHES:
        return rf"[{DASHES}]{{1,3}}\s*", False
    if token == "\u00ad":
        return rf"(?:[{DASHES[:3]}\u00ad]\s*)?", False
    if token == "\u2026" or (token.startswith(".") and len(token) > 1):
        return r"(?:\u2026|\.\s?\.\s?\.)", False
    if token in DOUBLE_QUOTES:
        return f"(?:[{DOUBLE_QUOTES}]|``|'')", False
    if token in SINGLE_QUOTES:
        return f"[{SINGLE_QUOTES}]", False
    if token in LIGATURES:
        return _ligature(token), True
    decomposed = unicodedata.normalize("NFD", token)
    forms = [token] if decomposed == token else [token, decomposed]
    if first and token.swapcase() != token and len(token.swapcase()) == 1:
        forms.append(token.swapcase())
    alternatives = "|".join(re.escape(form) for form in forms)
    return (alternatives if len(forms) == 1 else f"(?:{alternatives})"), token.isalnum()


def _ligature(letters: str) -> str:
    forms = [BREAK.join(letters), LIGATURES[letters]]
    if letters == "st":
        forms.append("\ufb05")
    if len(letters) == 3:
        forms += [LIGATURES["ff"] + BREAK + letters[2], "f" + BREAK + LIGATURES[letters[1:]]]
    return f"(?:{'|'.join(forms)})"


def _marker_after(answer: str, at: int) -> re.Match[str] | None:
    """The marker that follows a quotation, with at most a little punctuation between."""
    gap = re.compile(r"[\s.,;:(]{0,3}").match(answer, at)
    return MARKER.match(answer, gap.end() if gap else at)


def _labels(marker: re.Match[str]) -> list[int]:
    return [int(number) for number in marker.group(1).split(",")]


def _cite_quotation(quote: str, labels: Sequence[int], passages: Sequence[Passage]) -> list[Span]:
    """Spans of the quotation in the passages that it names, else in any other."""
    named = [label for label in labels if 1 <= label <= len(passages)]
    others = [label for label in range(1, len(passages) + 1) if label not in named]
    if not labels and len(WORD.findall(quote)) < SHORTEST_UNMARKED:
        others = []
    for label in [*named, *others]:
        passage = passages[label - 1]
        found = align_elided(quote, passage.text)
        if found:
            return [_span(passage, start, end, label) for start, end in found]
    return []


def _cite_nothing(quote: str, labels: Sequence[int], passages: Sequence[Passage]) -> list[Span]:
    """A quotation without a source: the passage that it names, or the first, with the answer's own words."""
    if not passages:
        return []
    label = next((label for label in labels if 1 <= label <= len(passages)), 1)
    passage = passages[label - 1]
    return [Span(passage.document, passage.start, passage.end, passage.page, quote, True, label=label)]


def _cite_reference(claim: str, label: int, passage: Passage) -> Span:
    words = content_words(claim)
    spans = _sentences(passage.text) or ((0, len(passage.text)),)
    best = max(spans, key=lambda span: (_covered(words, passage.text, *span), -span[0]))
    return replace(_span(passage, *best, label), quoted=False)


def _span(passage: Passage, start: int, end: int, label: int) -> Span:
    at = passage.start
    return Span(passage.document, at + start, at + end, passage.page, passage.text[start:end], label=label)


@lru_cache(maxsize=64)
def _sentences(text: str) -> tuple[tuple[int, int], ...]:
    return tuple(sentences(text))


def _covered(words: frozenset[str], text: str, start: int, end: int) -> float:
    return len(words & content_words(text[start:end])) / len(words) if words else 0.0


def _sentence_around(text: str, at: int) -> str:
    for start, end in sentences(text):
        if start <= at < end:
            return text[start:end]
    return text


@dataclass(frozen=True, slots=True)
class Citation:
    """A span after its check against the store.

    `verified` is True only if the stored characters `start:end` of the document equal `cited_text`.
    """

    span: Span
    page: int | None
    verified: bool
    boxes: tuple[dict[str, float], ...] = ()
    """where it is printed, for a PDF: see `retrieval.parsing.boxes.Box`"""


def check(span: Span, stored: str | None, page: int | None) -> Citation:
    """Compare a span with the stored slice `start:end` (None: no such document any more)."""
    return Citation(span, page, stored is not None and span.end > span.start and stored == span.cited_text)

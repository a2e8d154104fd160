"""Citations: the words of an answer, found again in the stored text (`alignment`), and what of it they leave bare."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from retrieval.parsing.sentences import sentences
from service.answering.alignment import WORD, align_elided
from service.answering.passages import Passage, Span

QUOTATION = re.compile(
    r'"([^"\n]{2,2000})"|\u201c([^\u201c\u201d]{2,2000})\u201d|\u00ab([^\u00ab\u00bb]{2,2000})\u00bb'
)
MARKER = re.compile(r"\[(\d{1,4}(?:\s*,\s*\d{1,4})*)\]")
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
    place: str = ""
    """where in the file it stands, for people; "" for a file without places"""
    boxes: tuple[dict[str, float], ...] = ()
    """where it is printed, for a PDF: see `retrieval.parsing.boxes.Box`"""


def check(span: Span, stored: str | None, page: int | None) -> Citation:
    """Compare a span with the stored slice `start:end` (None: no such document any more)."""
    return Citation(span, page, stored is not None and span.end > span.start and stored == span.cited_text)

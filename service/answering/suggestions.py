"""Questions that a document answers, for a reader who does not know yet what to ask.

Made by rule of English sentences that define, date, name or count something, and asked: only a question whose answer is
verified and cites the very sentence is suggested.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from retrieval.parsing.sentences import sentences
from service.answering.answer import Answerer, collect
from service.answering.question import Question
from service.engine.params import SamplingParams

READ_CHARS = 200_000
"""of a document, from its beginning"""
TRIES = 3
"""questions that are asked for each that is wanted"""

_SUBJECT = r"(?P<subject>(?:(?:[Tt]he|[Aa]n?|[Ee]ach|[Ee]very) )?[A-Za-z][\w'-]*(?: [\w'-]+){0,4}?)"
_DEFINES = re.compile(rf"{_SUBJECT} (?P<verb>is|are) (?:an?|the|one of|any|called)\b")
_MADE = re.compile(rf"{_SUBJECT} (?P<verb>was|were) (?P<done>\w+ed|built|made|sold|bought|lost|found|held)\b")
_COUNTS = re.compile(
    rf"{_SUBJECT} (?P<verb>has|have|had|holds?|contains?) "
    r"(?:\d[\d,]*|two|three|four|five|six|seven|eight|nine|ten|twelve|twenty) (?P<what>[a-z]+s)\b"
)
_YEAR = re.compile(r"\b(?:1\d{3}|20\d{2})\b")
_BY = re.compile(r"\bby [A-Z]")
_NO_SUBJECT = re.compile(
    r"(?:it|this|that|these|those|there|here|he|she|they|we|you|i|who|which|what|where|when|one|such|both|all|some|"
    r"if|as|but|and|or|so|then|thus|for|in|on|at|to|with|by|from|of|not|no|its|their|his|her|most|many)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A question and the characters of the sentence that should answer it."""

    question: str
    start: int
    end: int


@dataclass(frozen=True)
class Suggestion:
    """A question whose answer is verified."""

    question: str
    answer: str
    citations: list[dict[str, Any]]


def candidates(text: str) -> list[Candidate]:
    """Questions of a text, one of each subject, in its order."""
    found: dict[str, Candidate] = {}
    for start, end in sentences(text[:READ_CHARS]):
        for question in _asked(" ".join(text[start:end].split())):
            found.setdefault(question, Candidate(question, start, end))
    return list(found.values())


async def suggestions(
    answerer: Answerer, document: str, owner: str, params: SamplingParams, wanted: int
) -> list[Suggestion]:
    """At most so many, from all over the document. Raises NotFound (retrieval's), and what an answer does."""
    text = await asyncio.to_thread(answerer.finder.library.text, document, 0, READ_CHARS, owner)
    found: list[Suggestion] = []
    for one in _spread(await asyncio.to_thread(candidates, text), TRIES * wanted):
        question = Question(question=one.question, documents=(document,))
        answer = await collect(answerer.answer(question, params, owner))
        cited = any(each["start"] < one.end and one.start < each["end"] for each in answer.citations)
        if answer.verified and not answer.refused and cited:
            found.append(Suggestion(one.question, answer.answer, answer.citations))
        if len(found) == wanted:
            break
    return found


def _asked(sentence: str) -> Iterator[str]:
    defines, made, counts = _DEFINES.match(sentence), _MADE.match(sentence), _COUNTS.match(sentence)
    if defines and (subject := _subject(defines)):
        yield f"What {defines['verb']} {subject}?"
    if made and (subject := _subject(made)):
        if _YEAR.search(sentence):
            yield f"When {made['verb']} {subject} {made['done']}?"
        if _BY.search(sentence):
            yield f"Who {made['done']} {subject}?"
    if counts and (subject := _subject(counts)):
        helps = {"has": "does", "have": "do", "had": "did"}.get(counts["verb"])
        helps = helps or ("does" if counts["verb"].endswith("s") else "do")
        plain = "have" if counts["verb"].startswith("ha") else counts["verb"].removesuffix("s")
        yield f"How many {counts['what']} {helps} {subject} {plain}?"


def _subject(match: re.Match[str]) -> str:
    """As it stands within a sentence; empty for a word that points to another sentence."""
    subject = match["subject"]
    if _NO_SUBJECT.match(subject):
        return ""
    article = re.match(r"(?:The|An?|Each|Every) ", subject)
    return subject[0].lower() + subject[1:] if article else subject


def _spread(found: Sequence[Candidate], most: int) -> Sequence[Candidate]:
    """At most so many, evenly over them."""
    step = max(1, len(found) // most)
    return found[::step][:most]

"""Which sentences answer a question, or that none does. What they say is then quoted, not written.

The ranker (`retrieval.ranking`) reads; this decides how many of its sentences a question needs. A refusal is a decision
too: below the probability that the ranker was calibrated to, nothing is quoted.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from retrieval.ranking.ranker import SentenceRanker

MOST = 3
"""sentences of one answer"""
SURE = 0.5
"""A further sentence that more probably answers than not is quoted as well, …"""
NEEDED = 0.2
"""… and one this probable where the question asks for several things."""
CONTEXT_CHARS = 900
"""of a passage as the ranker reads it; longer ones are parted"""

_HEADING = re.compile(r"\s*#{1,6}\s")
_SAYS = re.compile(r"[.!?…:;。！？][\"'”’»)\]]*$|[|:]|^\s*[-*•]\s")
"""What a line has that is a sentence, a row, an item or a value."""
_SEVERAL = re.compile(
    r"\b(?:list|name (?:the|all|some|two|three|four)|which (?:\w+ ){0,2}\w+s\b (?:are|were|do|did|have)|"
    r"what (?:are|were)|"
    r"(?:who|what|when|where|why|how)\b[^?]*\b(?:and|or) (?:who|what|when|where|why|how|to whom|for what)\b|"
    r"steps|differences?|advantages|reasons|both|each|compare|nenne|welche \w+ (?:sind|waren|gibt|haben)|"
    r"(?:wer|was|wann|wo|warum|wie)\b[^?]*\bund (?:wer|was|wann|wo|warum|wie)\b)",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Choice:
    """The numbers of the sentences that answer, in the order of the text; none for a refusal.

    Attributes:
        likely: numbers of the sentences that came into question, in the order of the text.
        probability: that the best of them answers.
    """

    sentences: tuple[int, ...]
    likely: tuple[int, ...]
    probability: float


class SentenceChooser:
    """Chooses with a ranker."""

    LIKELY = 12

    def __init__(self, ranker: SentenceRanker) -> None:
        self._ranker = ranker

    def choose(self, question: str, passages: Sequence[Sequence[str]]) -> Choice:
        """passages: the sentences of each, which are numbered through all of them."""
        sentences = [sentence for passage in passages for sentence in passage]
        scores = self._ranker.score(question, sentences, _contexts(passages))
        order = np.argsort(-scores, kind="stable").tolist()
        likely = tuple(sorted(order[: self.LIKELY]))
        told = [number for number in order if not _is_heading(sentences[number])]
        if told and scores[told[0]] >= self._ranker.refuse_below:
            order = told
        best = float(scores[order[0]]) if order else 0.0
        if not order or best < self._ranker.refuse_below:
            return Choice((), likely, best)
        least = NEEDED if _SEVERAL.search(question) else SURE
        chosen: list[int] = order[:1]
        said = {_plain(sentences[order[0]])}
        for number in order[1:]:
            if len(chosen) == MOST or scores[number] < least:
                break
            if _plain(sentences[number]) not in said:  # what two documents say in the same words is said once
                chosen.append(number)
                said.add(_plain(sentences[number]))
        return Choice(tuple(sorted(chosen)), likely, best)


def _is_heading(sentence: str) -> bool:
    """Whether it names what follows and says nothing: it is quoted only where nothing else answers."""
    return bool(_HEADING.match(sentence)) or (len(sentence.split()) <= 12 and not _SAYS.search(sentence))


def _plain(sentence: str) -> str:
    return " ".join(re.findall(r"\w+", sentence.lower()))


def _contexts(passages: Sequence[Sequence[str]]) -> list[str]:
    """The passage in which each sentence is read."""
    contexts: list[str] = []
    for sentences in passages:
        part: list[str] = []
        for sentence in sentences:
            if part and sum(map(len, part)) + len(sentence) > CONTEXT_CHARS:
                contexts += [" ".join(part)] * len(part)
                part = []
            part.append(sentence)
        contexts += [" ".join(part)] * len(part)
    return contexts

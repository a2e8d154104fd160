"""Which sentences answer a question, or that none does. What they say is then quoted, not written.

The ranker (`retrieval.ranking`) reads; this decides how many of its sentences a question needs. A refusal is a decision
too: below the probability that the ranker was calibrated to, nothing is quoted.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from retrieval.ranking.ranker import READ_CHARS, SentenceRanker

MOST = 3
"""sentences of one answer"""
SURE = 0.5
"""A further sentence that more probably answers than not is quoted as well, …"""
NEEDED = 0.2
"""… and one this probable where the question asks for several things."""
RIVAL = 0.4
"""Where the best is not sure, a second one that is at least so many times as probable is quoted beside it."""

_HEADING = re.compile(
    r"\s*#{1,6}\s|\s*(?:chapter|part|book|section|appendix|kapitel|teil|abschnitt|anhang|capítulo|sección)\s+"
    r"(?:[ivxlc]+|\d+)\b(?!.*[.!?]$)",
    re.IGNORECASE,
)
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

    LIKELY = 4

    def __init__(self, ranker: SentenceRanker) -> None:
        self._ranker = ranker

    def choose(
        self,
        question: str,
        sentences: Sequence[str],
        contexts: Sequence[str],
        names: Collection[int] = (),
        room: int = READ_CHARS,
    ) -> Choice:
        """Args:
        contexts: the text in which each sentence is read (`service.reader.contexts`).
        names: numbers of the rows that hold names of columns; they are headings.
        room: characters that the ranker reads.
        """
        scores = self._ranker.score(question, sentences, contexts, room)
        bound = self._ranker.refuse_below(question, len(sentences))
        order = np.argsort(-scores, kind="stable").tolist()
        likely = tuple(sorted(order[: self.LIKELY]))
        order = [number for number in order if number not in names and not _HEADING.match(sentences[number])]
        told = [number for number in order if not _is_fragment(sentences[number])]
        if told and scores[told[0]] >= bound:
            order = told
        best = float(scores[order[0]]) if order else 0.0
        if not order or best < bound:
            return Choice((), likely, best)
        least = NEEDED if _SEVERAL.search(question) else SURE
        chosen: list[int] = order[:1]
        said = {_plain(sentences[order[0]])}
        for number in order[1:]:
            rivals = len(chosen) == 1 and best < SURE and scores[number] >= RIVAL * best
            if len(chosen) == MOST or (scores[number] < least and not rivals):
                break
            if _plain(sentences[number]) not in said:  # what two documents say in the same words is said once
                chosen.append(number)
                said.add(_plain(sentences[number]))
        return Choice(tuple(sorted(chosen)), likely, best)


def _is_fragment(sentence: str) -> bool:
    """Whether it looks like the name of what follows: it is quoted only where nothing else answers."""
    return len(sentence.split()) <= 12 and not _SAYS.search(sentence)


def _plain(sentence: str) -> str:
    return " ".join(re.findall(r"\w+", sentence.lower()))

"""What the ranker makes of what a search found: which sentences may answer the question, and how sure that is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from retrieval.parsing.chunking import in_context
from retrieval.parsing.sentences import units
from retrieval.ranking.ranker import FOUND_CHARS, SentenceRanker
from retrieval.types import Hit

SHORTEST = 3
"""words of what is worth pointing out"""


@dataclass(frozen=True, slots=True)
class Likely:
    """A sentence that was found, or a row of a table.

    Attributes:
        hit: the number of the passage that holds it.
        text: its words on one line.
        probability: that it answers the question, by the ranker.
    """

    hit: int
    text: str
    probability: float


def likely(ranker: SentenceRanker, question: str, hits: Sequence[Hit]) -> list[Likely]:
    """The sentences of the passages, the likeliest to answer first."""
    places = [(number, start, end) for number, hit in enumerate(hits) for start, end in units(hit.text)]
    contexts = [in_context(hit.context, hit.text) for hit in hits]
    sentences = [hits[number].text[start:end] for number, start, end in places]
    scores = ranker.score(question, sentences, [contexts[number] for number, _, _ in places], FOUND_CHARS)
    found = [
        Likely(number, " ".join(sentence.split()), float(score))
        for (number, _, _), sentence, score in zip(places, sentences, scores, strict=True)
    ]
    return sorted(found, key=lambda one: -one.probability)


def pointed_out(found: Sequence[Likely], hits: int) -> list[str]:
    """What of it can be shown beside the question, each once: sentences of the first `hits` passages."""
    texts = (one.text for one in found if one.hit < hits and len(one.text.split()) >= SHORTEST)
    return list(dict.fromkeys(texts))

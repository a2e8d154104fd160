"""How sure the ranker is that something of what was found answers the question."""

from __future__ import annotations

import re
from collections.abc import Sequence

from retrieval.ranking.ranker import SentenceRanker
from retrieval.ranking.reranking import reranked
from retrieval.types import Hit

_WORD = re.compile(r"[a-z]+")
_ENGLISH = frozenset(
    ("the", "of", "what", "who", "whom", "whose", "how", "when", "which", "where", "why", "did", "does", "were", "and")
)
"""Words of every English text, and of few others."""


def surest(ranker: SentenceRanker, question: str, hits: Sequence[Hit]) -> float:
    """The probability that the best sentence of the passages answers the question."""
    return max((hit.score for hit in reranked(ranker, question, hits)), default=0.0)


def is_read(question: str, hits: Sequence[Hit]) -> bool:
    """Whether all of it is English, which the packaged ranker was trained on: of the rest it is never sure."""
    return all(_ENGLISH.intersection(_WORD.findall(text.lower())) for text in (question, *(hit.text for hit in hits)))

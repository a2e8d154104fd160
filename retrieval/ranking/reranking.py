"""The hits of a search in the ranker's order: the passage whose best sentence answers most probably comes first."""

from __future__ import annotations

from collections.abc import Sequence

from retrieval.parsing.chunking import in_context
from retrieval.parsing.sentences import units
from retrieval.ranking.ranker import SentenceRanker
from retrieval.types import Hit

CANDIDATES = 16
"""hits of the search that are read, at least"""


def reranked(ranker: SentenceRanker, query: str, hits: Sequence[Hit]) -> list[Hit]:
    """The hits by falling probability, which is their score from then on; ties as they came."""
    texts = [[hit.text[start:end] for start, end in units(hit.text)] for hit in hits]
    contexts = [in_context(hit.context, hit.text) for hit in hits]
    scores = ranker.passages(query, texts, contexts)
    order = sorted(range(len(hits)), key=lambda n: -scores[n])
    return [hits[n].scored(float(scores[n])) for n in order]

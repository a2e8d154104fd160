"""The control: the best sentence of the passages found, by the encoder's cosine plus idf overlap, printed as it stands.

It never refuses, writes nothing of its own and cites what it prints. Whatever answers with a model is held to it.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from typing import Any

import numpy as np

from eval.qa.corpus import Corpus, Span, windows
from eval.qa.dataset import Item
from eval.qa.judging import search_query
from eval.qa.ranking import CHARACTERS, WORDS, searched
from eval.qa.replies import Cited, Mode, Reply
from eval.qa.scoring import pieces
from retrieval.parsing.sentences import sentences

PASSAGES = 8
BEST = 3


class Control:
    """Answers without a model."""

    def describe(self) -> dict[str, Any]:
        return {"passages": PASSAGES}

    async def answers(self, items: Sequence[Item], mode: Mode, corpus: Corpus) -> AsyncIterator[Reply]:
        for reply in await asyncio.to_thread(self._answers, items, mode, corpus):
            yield reply

    def _answers(self, items: Sequence[Item], mode: Mode, corpus: Corpus) -> list[Reply]:
        queries = [search_query(item) for item in items]
        scope = [item.document for item in items] if mode == "closed" else None
        found = searched(corpus, queries, PASSAGES, scope, mode="hybrid")
        choices = [[span for passage in passages for span in _sentences(corpus, passage)] for passages in found]
        texts = list(dict.fromkeys(corpus.text(span) for spans in choices for span in spans))
        row = {text: at for at, text in enumerate(texts)}
        sentence_vectors = corpus.library.embedder.encode_documents(texts)
        question_vectors = corpus.library.embedder.encode_queries(queries)
        idf = _Idf(corpus)
        replies = []
        for item, query, vector, passages, spans in zip(items, queries, question_vectors, found, choices, strict=True):
            told = [corpus.text(span) for span in spans]
            cosine = sentence_vectors[[row[text] for text in told]] @ vector if told else np.zeros(0)
            scores = cosine + np.array([idf.overlap(query, text) for text in told])
            best = tuple(spans[at] for at in np.argsort(-scores, kind="stable")[:BEST])
            replies.append(_reply(item, best, passages, corpus))
        return replies


class _Idf:
    """How rare words are among the naive chunks of the documents."""

    def __init__(self, corpus: Corpus) -> None:
        chunks = [set(pieces(corpus.text(span))) for span in windows(corpus.texts, WORDS, CHARACTERS)]
        self._holding = Counter(word for words in chunks for word in words)
        self._chunks = len(chunks)

    def overlap(self, question: str, sentence: str) -> float:
        """Share of the question's words, weighed by idf, that the sentence has."""
        asked, said = set(pieces(question)), set(pieces(sentence))
        whole = sum(map(self._idf, asked))
        return sum(map(self._idf, asked & said)) / whole if whole else 0.0

    def _idf(self, word: str) -> float:
        holding = self._holding[word]
        return float(np.log(1 + (self._chunks - holding + 0.5) / (holding + 0.5)))


def _sentences(corpus: Corpus, passage: Span) -> list[Span]:
    name, start, _ = passage
    return [(name, start + a, start + b) for a, b in sentences(corpus.text(passage))]


def _reply(item: Item, best: tuple[Span, ...], passages: Sequence[Span], corpus: Corpus) -> Reply:
    answer = corpus.text(best[0]) if best else ""
    citations = (Cited(best[0], True, True, 0, len(answer)),) if best else ()
    return Reply(item.id, answer, "stop", tuple(passages), citations, best)

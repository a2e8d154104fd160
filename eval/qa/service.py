"""Answers of the service itself: `service.answering`, the code behind `POST /v1/answer`, with any model."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

from eval.qa.corpus import Corpus
from eval.qa.dataset import Item
from eval.qa.judging import as_question
from eval.qa.replies import Mode, Reply
from retrieval.library import Library
from service.answering.answer import Answer, Answerer, collect
from service.answering.evidence import EvidenceFinder
from service.answering.question import Sampling
from service.engine.async_engine import AsyncEngine
from service.errors import FolioError
from service.models import layout_for
from service.settings import Settings

KEPT = (
    "prompt_tokens",
    "output_tokens",
    "decode_tokens_per_s",
    "ttft_s",
    "retrieval_ms",
    "drafted_tokens",
    "accepted_tokens",
    "accepted_length",
)
"""Statistics of an answer that are kept."""


class Service:
    """The service with a model that is loaded.

    Args:
        clients: questions under way at once; the engine runs them in one batch.
    """

    def __init__(
        self, settings: Settings, engine: AsyncEngine, sampling: Sampling, clients: int, library: Library
    ) -> None:
        self._settings = settings
        self._engine = engine
        self._layout = layout_for(
            settings.model, engine.tokenizer, lambda: library.ranker, engine.engine.loaded.num_parameters
        )
        finder = EvidenceFinder(library, self._layout, engine.window, settings)
        self._answerer = Answerer(finder, engine, self._layout)
        self._sampling = sampling
        self._clients = clients

    def describe(self) -> dict[str, Any]:
        return {
            "layout": self._layout.name,
            "clients": self._clients,
            "passages": self._settings.passages,
            "answer_tokens": self._sampling.max_tokens or self._answerer.answer_tokens,
        }

    async def answers(self, items: Sequence[Item], mode: Mode, corpus: Corpus) -> AsyncIterator[Reply]:
        room = asyncio.Semaphore(self._clients)

        async def one(item: Item) -> Reply:
            async with room:
                return await self._answer(item, mode, corpus)

        tasks = [asyncio.ensure_future(one(item)) for item in items]
        try:
            for task in asyncio.as_completed(tasks):
                yield await task
        finally:
            for task in tasks:
                task.cancel()

    async def _answer(self, item: Item, mode: Mode, corpus: Corpus) -> Reply:
        scope = {"documents": [corpus.ids[item.document]]} if mode == "closed" else {"mode": "retrieval"}
        params = self._sampling.params(self._answerer.answer_tokens, self._engine.sampling_defaults)
        try:
            answer = await collect(self._answerer.answer(as_question(item, **scope), params))
        except FolioError as error:
            return Reply(item.id, error=str(error))
        return _reply(item, answer, corpus)


def _reply(item: Item, answer: Answer, corpus: Corpus) -> Reply:
    return Reply(
        item.id,
        answer.answer,
        answer.finish_reason,
        tuple((corpus.names[one["document"]], one["start"], one["end"]) for one in answer.results),
        stats={name: answer.stats[name] for name in KEPT if answer.stats.get(name) is not None},
    )

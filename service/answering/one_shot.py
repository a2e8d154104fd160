"""An answer from evidence that is gathered once: modes long and retrieval, with a kNN datastore or without."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace

from retrieval.index.token_store import TokenStore
from retrieval.knn.decoding import KnnOptions
from retrieval.types import Document
from service.answering.datastores import Datastores
from service.answering.evidence import Evidence, EvidenceFinder
from service.answering.knn import KnnRequest
from service.answering.question import Question
from service.engine.async_engine import AsyncEngine
from service.engine.options import parse_drafter
from service.engine.outputs import TokenOutput
from service.engine.params import DraftSources, SamplingParams

CONTEXT = 8
"""tokens of the prompt's end by which a drafter finds the beginning of an answer that is known"""


class OneShotAnswer:
    """One answer, by the methods of ``iterative.IterativeAnswer``: ``begin``, then ``outputs``, then ``evidence``."""

    def __init__(
        self,
        question: Question,
        owner: str,
        named: Sequence[Document],
        params: SamplingParams,
        finder: EvidenceFinder,
        datastores: Datastores,
        engine: AsyncEngine,
    ) -> None:
        """named: the documents that the question names."""
        self._question = question
        self._owner = owner
        self._named = named
        self._params = params
        self._finder = finder
        self._datastores = datastores
        self._engine = engine
        self._evidence: Evidence
        self._mixture: KnnRequest | None = None
        self._store: TokenStore | None = None

    async def begin(self) -> Evidence:
        """Gather the evidence and whatever the drafter draws on. Raises what a question can be refused for."""
        question, owner = self._question, self._owner
        drafter = parse_drafter(self._params.drafter or self._finder.settings.drafter)
        draws_on, reads = drafter.draws_on, drafter.reads
        if question.knn is not None:
            options = KnnOptions(**question.knn.model_dump())
            loaded = self._engine.engine.loaded
            self._mixture = await self._datastores.prepare(loaded, owner, question.collection, options)
            draws_on, reads = frozenset(), None  # a mixture guesses with its own neighbours
        self._evidence = await self._finder.find(question, owner, self._named, self._params.max_tokens, reads)
        if not self._params.constraint:
            await self._finder.turns.run(owner, self._settle)
        if "datastore" in draws_on and self._evidence.prompt is not None:
            self._store = await asyncio.to_thread(self._finder.library.token_store, owner)
        return self._evidence

    def outputs(self) -> AsyncGenerator[TokenOutput, None]:
        """The engine's, for the prompt over the evidence."""
        assert self._evidence.prompt is not None
        prompt = self._evidence.prompt
        known = [[*prompt.ids[-CONTEXT:], *prompt.answer]] if prompt.answer else []
        sources = DraftSources(documents=known, prompt=self._evidence.draft_ids, datastore=self._store)
        return self._engine.stream(prompt.ids, self._params, sources, self._mixture, spans=prompt.spans)

    def _settle(self) -> None:
        """Let the layout choose the answer, where it does; the model then only says it."""
        prompt = self._evidence.prompt
        if prompt is not None and prompt.settle is not None:
            settled = prompt.settle(self._evidence.mode == "retrieval")
            self._evidence = replace(self._evidence, prompt=settled)
            self._params = replace(self._params, forced=settled.answer)

    async def evidence(self) -> Evidence:
        """The same as at the beginning: nothing more is read."""
        return self._evidence

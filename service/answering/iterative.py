"""Modes iterative, flare and iter-retgen: retrieve while the answer is written, the newest passage in place of the one
before.

When that is, and what is searched for, ``service.answering.stride_writers`` say; the loops that search, or guess what
a search will find (RaLMSpec, 2401.14021), are ``retrieval.iterative.speculation``.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncGenerator, Hashable
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import numpy as np

from retrieval.errors import RetrievalError
from retrieval.iterative.retrievers import SnapshotRetriever
from retrieval.iterative.speculation import IterativeRetrieval
from retrieval.iterative.strides import Experience, SpeculationOptions
from retrieval.library import Library
from service.answering.evidence import Evidence
from service.answering.passages import hit_data
from service.answering.prompting.layouts import PromptLayout
from service.answering.question import Question
from service.answering.stride_writers import WRITERS, QueryText, StrideWriter, query_tokens
from service.engine.async_engine import AsyncEngine
from service.engine.detokenizer import Detokenizer
from service.engine.outputs import TokenOutput
from service.engine.params import SamplingParams
from service.errors import outward


def experience_kind(question: Question, owner: str) -> Hashable:
    """Questions of one kind cost about the same to guess and to verify, and are guessed about as well."""
    options = question.iterative.model_copy(update={"stride": None})
    return owner, question.mode, question.collection, question.documents, options


class IterativeAnswer:
    """One answer in such a mode: ``begin``, then ``outputs``, then ``evidence`` for what was read."""

    def __init__(
        self,
        question: Question,
        owner: str,
        params: SamplingParams,
        library: Library,
        layout: PromptLayout,
        engine: AsyncEngine,
        experience: Experience,
    ) -> None:
        """experience: of earlier questions of this kind."""
        self._question = question
        self._owner = owner
        self._experience = experience
        self._options = question.iterative
        self._params = params
        self._library = library
        self._layout = layout
        self._engine = engine
        self._tokenizer = engine.engine.tokenizer
        self._writer: StrideWriter
        self._query: QueryText
        self._retriever: SnapshotRetriever
        self._loop: IterativeRetrieval
        self._read: list[int] = []

    async def begin(self) -> Evidence:
        """Search with the question. Raises FolioError: what a question can be refused for."""
        try:
            return await self._begin()
        except RetrievalError as error:
            raise outward(error) or error from error

    async def _begin(self) -> Evidence:
        began = time.perf_counter()
        question, options = self._question, self._options
        self._retriever = await asyncio.to_thread(
            lambda: self._library.retriever(
                collection=question.collection,
                documents=list(question.documents) or None,
                owner=self._owner,
                mode=options.retriever,
                longest_query=query_tokens(question),
            )
        )
        self._query = await asyncio.to_thread(QueryText, question.query, query_tokens(question), self._tokenizer)
        self._writer = WRITERS[question.mode](
            question, self._owner, self._params, self._library, self._layout, self._engine, self._query
        )
        overlap = options.overlap
        if overlap is None:
            overlap = not self._engine.engine.config.device.startswith("cpu")
        how = SpeculationOptions(options.stride, prefetch=options.prefetch, overlap=overlap)
        self._loop = IterativeRetrieval(self._retriever, self._writer.write, self._query([]), how, self._experience)
        found = await self._loop.begin()
        prompt = None
        if len(found):
            self._read = [int(found[0])]
            _, prompt = await self._writer.prompt(self._read[0])
        generation = self._retriever.snapshot.generation
        return replace(
            await self.evidence(),
            prompt=prompt,
            retrieval_ms=1000 * (time.perf_counter() - began),
            generation=generation.number if generation is not None else 0,
        )

    async def evidence(self) -> Evidence:
        """The passages read so far, scored by the question, with a prompt over all of them."""
        how = "speculative" if self._options.speculate else "sequential"
        reason = f"asked for; {self._writer.pace}, {how}"
        hits = [(await self._writer.prompt(chunk))[0] for chunk in self._read]
        scores = await asyncio.to_thread(self._scores)
        return Evidence(
            mode=self._question.mode,
            reason=reason if hits else f"{reason}; nothing found",
            prompt=await asyncio.to_thread(self._writer.citing_prompt, hits) if hits else None,
            results=[hit_data(hit) | {"score": score} for hit, score in zip(hits, scores, strict=True)],
            names={hit.document: hit.name for hit in hits},
            retrieval_ms=1000 * self._loop.stats.search_s,
            query=self._question.query,
            turns=self._writer.turns,
        )

    async def outputs(self) -> AsyncGenerator[TokenOutput, None]:
        """The answer as it is verified, the last output with the figures of all.

        Raises FolioError: the retriever or the engine failed, or time is up; what was given before stands.
        """
        text = Detokenizer(self._tokenizer, self._params.stop)
        count = 0
        run = self._loop.speculative() if self._options.speculate else self._loop.sequential()
        try:
            with self._engine.ticket() as self._writer.ticket:
                async with aclosing(run) as strides:
                    async for stride in strides:
                        if stride.chunk not in self._read:
                            self._read.append(stride.chunk)
                        if stride.whole and not stride.finish:
                            continue  # another answer takes its place
                        count += len(stride.tokens)
                        piece = text.push(stride.tokens, last=stride.finish is not None)
                        finish = "stop" if text.stopped else stride.finish
                        stats = self._stats(count) if finish else {}
                        output = TokenOutput("iterative", stride.tokens, piece, bool(finish), finish, stats)
                        self._writer.ticket.observe(output)
                        yield output
                        if finish:
                            return
        except RetrievalError as error:
            raise outward(error) or error from error

    def _stats(self, count: int) -> dict[str, Any]:
        """What an engine tells of one request, of all strides; and the loop's own figures as ``iterative``."""
        seconds = self._loop.stats.total_s
        return {
            "prompt_tokens": self._writer.prompt_tokens,
            "cached_tokens": self._writer.reused_tokens,
            "output_tokens": count,
            "decode_tokens_per_s": count / seconds if seconds else None,
            "iterative": {
                "speculate": self._options.speculate,
                "k": self._options.k,
                "retriever": self._options.retriever,
                "query_tokens_cut": self._retriever.tokens_cut,
                "passages": len(self._read),
                "reused_share": self._writer.reused_tokens / max(1, self._writer.prompt_tokens),
                **self._loop.figures(),
            },
        }

    def _scores(self) -> list[float | None]:
        """Of the passages read, by the question; None for one that shares no term with it."""
        query = self._retriever.query(self._query([]))
        scores = self._retriever.score(query, np.array(self._read, dtype=np.int64))
        return [score if math.isfinite(score) else None for score in scores.tolist()]

"""Mode iterative: retrieve every few tokens, the newest passage in place of the one before (RaLM, RaLMSpec 2401.14021).

Every stride is an ordinary request to the engine: the prompt over one passage, the answer so far, a few tokens more.
The engine's prefix cache keeps the pages of earlier strides, so a stride over the same passage computes what is new, a
passage that comes back finds its pages, and a guess that was wrong is undone by asking for the earlier prefix again.
The loops themselves are ``retrieval.iterative.speculation``.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncGenerator, Hashable, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any, Protocol

import numpy as np

from retrieval.errors import RetrievalError
from retrieval.iterative.retrievers import SnapshotRetriever
from retrieval.iterative.speculation import IterativeRetrieval, Stride
from retrieval.iterative.strides import Experience, SpeculationOptions
from retrieval.library import Library
from retrieval.types import Hit
from service.answering.conversation.turns import fitted
from service.answering.evidence import Evidence, hit_data
from service.answering.passages import Passage
from service.answering.prompting.encoding import Encoder
from service.answering.prompting.layouts import Prompt, PromptLayout
from service.answering.question import Question
from service.engine.async_engine import AsyncEngine
from service.engine.detokenizer import Detokenizer
from service.engine.outputs import TokenOutput
from service.engine.params import SamplingParams
from service.engine.ticket import Ticket
from service.errors import Conflict, translate

DRAFTER = "none"
"""of strides whose request names none: a stride of four tokens seldom repays what a drafter costs to open"""
SEED_STEP = 0x9E3779B97F4A7C15
"""keys the noise of each stride apart: positions repeat where a shorter passage follows a longer one"""


class Passages(Protocol):
    """Where the text of chunks is read: a ``Library``."""

    def hits(self, ids: Sequence[int], owner: str) -> list[Hit]: ...


class QueryText:
    """What a search is asked with: the last tokens of the question and the answer so far, as text."""

    def __init__(self, question: str, tokens: int, tokenizer: Any) -> None:
        self._question = Encoder(tokenizer).data(" ".join(question.split()))
        self._tokens = tokens
        self._tokenizer = tokenizer

    def __call__(self, answer: Sequence[int]) -> str:
        return self._tokenizer.decode([*self._question, *answer][-self._tokens :], skip_special_tokens=True)


class StrideWriter:
    """Continues the answer behind a passage, by a request to the engine."""

    def __init__(
        self,
        question: Question,
        owner: str,
        params: SamplingParams,
        library: Passages,
        layout: PromptLayout,
        engine: AsyncEngine,
    ) -> None:
        self._question = question
        self._owner = owner
        self._params = replace(params, stop=(), logprobs=None, drafter=params.drafter or DRAFTER)
        self._library = library
        self._layout = layout
        self._engine = engine
        self.ticket: Ticket | None = None
        """the answer's, which its strides share"""
        self._prompts: dict[int, tuple[Hit, Prompt]] = {}
        self.prompt_tokens = 0
        """of all strides, answer so far included"""
        self.reused_tokens = 0
        """of these, those whose keys and values were there already"""
        self.turns = len(question.history)
        """earlier turns that every prompt holds"""

    async def write(self, chunk: int, tokens: Sequence[int]) -> Stride:
        """The next k tokens. See ``speculation.Write``."""
        _, prompt = await self.prompt(chunk)
        count = min(self._question.iterative.k, self._params.max_tokens - len(tokens))
        params = replace(self._params, max_tokens=count, seed=(self._params.seed + SEED_STEP * len(tokens)) % 2**63)
        ids = [*prompt.ids, *tokens]
        written: list[int] = []
        finish = None
        async with aclosing(self._engine.stream(ids, params, ticket=self.ticket)) as outputs:
            async for output in outputs:
                written += output.token_ids
                finish = output.finish_reason
                if output.finished:
                    self.prompt_tokens += len(ids)
                    self.reused_tokens += output.stats.get("cached_tokens", 0)
        more = finish == "length" and len(tokens) + len(written) < self._params.max_tokens
        return Stride(chunk, written, None if more else finish)

    async def prompt(self, chunk: int) -> tuple[Hit, Prompt]:
        """The chunk and the prompt over it. Raises Conflict where its document is gone."""
        known = self._prompts.get(chunk)
        if known is None:
            known = self._prompts[chunk] = await asyncio.to_thread(self._build, chunk)
        return known

    def citing_prompt(self, hits: Sequence[Hit]) -> Prompt:
        """A prompt over all passages that were read, to find the answer's quotations in."""
        return self._over(self._question, hits)

    def _over(self, question: Question, hits: Sequence[Hit]) -> Prompt:
        passages = [Passage.of(hit) for hit in hits]
        return self._layout.build(question.text, passages, question.turns, instructions=question.instructions)

    def _build(self, chunk: int) -> tuple[Hit, Prompt]:
        hits = self._library.hits([chunk], self._owner)
        if not hits:
            raise Conflict(
                "A document was deleted or replaced while the answer was written from it.", hint="Ask again."
            )
        room = self._engine.window - self._params.max_tokens
        asked, prompt = fitted(self._question, lambda one: self._over(one, hits), room)
        self.turns = min(self.turns, len(asked.history))
        return hits[0], prompt


def experience_kind(question: Question, owner: str) -> Hashable:
    """Questions of one kind cost about the same to guess and to verify, and are guessed about as well."""
    return owner, question.collection, question.documents, question.iterative.model_copy(update={"stride": None})


class IterativeAnswer:
    """One answer in mode iterative: ``begin``, then ``outputs``, then ``evidence`` for what was read."""

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
        self._engine = engine
        self._writer = StrideWriter(question, owner, params, library, layout, engine)
        self._tokenizer = engine.engine.tokenizer
        self._query_text: QueryText
        self._retriever: SnapshotRetriever
        self._loop: IterativeRetrieval
        self._read: list[int] = []

    async def begin(self) -> Evidence:
        """Search with the question. Raises FolioError: what a question can be refused for."""
        try:
            return await self._begin()
        except RetrievalError as error:
            raise translate(error) or error from error

    async def _begin(self) -> Evidence:
        began = time.perf_counter()
        question, options = self._question, self._options
        self._retriever = await asyncio.to_thread(
            lambda: self._library.retriever(
                collection=question.collection,
                documents=list(question.documents) or None,
                owner=self._owner,
                mode=options.retriever,
                longest_query=options.query_tokens,
            )
        )
        self._query_text = await asyncio.to_thread(QueryText, question.query, options.query_tokens, self._tokenizer)
        overlap = options.overlap
        if overlap is None:
            overlap = not self._engine.engine.config.device.startswith("cpu")
        how = SpeculationOptions(options.stride, prefetch=options.prefetch, overlap=overlap)
        self._loop = IterativeRetrieval(self._retriever, self._writer.write, self._query_text, how, self._experience)
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
        reason = f"asked for; every {self._options.k} tokens, {how}"
        hits = [(await self._writer.prompt(chunk))[0] for chunk in self._read]
        scores = await asyncio.to_thread(self._scores)
        return Evidence(
            mode="iterative",
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
            raise translate(error) or error from error

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
        query = self._retriever.query(self._query_text([]))
        scores = self._retriever.score(query, np.array(self._read, dtype=np.int64))
        return [score if math.isfinite(score) else None for score in scores.tolist()]

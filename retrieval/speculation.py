"""RaLMSpec: retrieval every few tokens, guessed from a cache and verified in batches (arXiv 2401.14021).

A text is written in *strides* of a few tokens. Before each, the last tokens are the query, and the best chunk replaces
the one before it in the prompt. ``IterativeRetrieval.sequential`` does just that. ``speculative`` guesses the best
chunk from those that earlier searches brought, under the retriever's own metric; one batched search then verifies a
window of guesses, and the first wrong one and what was written behind it are written again. Both give the same tokens,
because the query, and so the true chunk, depends on the verified tokens alone.

The loops know no model and no index: ``write`` continues a text given a chunk, a ``Retriever`` searches.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import structlog

from retrieval.errors import RetrieverFailed
from retrieval.strides import Experience, SpeculationOptions, StrideScheduler

log = structlog.get_logger(__name__)


class Retriever(Protocol):
    """What the loops need of an index; every method may be called from any thread."""

    def query(self, text: str) -> Any:
        """The query for a text, encoded once for both of the methods below."""

    def search(self, queries: Sequence[Any], k: int) -> list[np.ndarray]:
        """For each query the ids int64[≤k] of the best chunks by (−score, id), the same as if it were asked alone."""

    def score(self, query: Any, ids: np.ndarray) -> np.ndarray:
        """float64[n] scores of the chunks ``ids``, those that ``search`` ranks by, to the last bit; −inf where
        ``search`` would never return the chunk."""


@dataclass(frozen=True)
class Stride:
    """Some tokens written behind a chunk.

    Attributes:
        finish: why the text ends with them; None where it goes on.
    """

    chunk: int
    tokens: list[int]
    finish: str | None = None


Write = Callable[[int, Sequence[int]], Awaitable[Stride]]
"""(chunk id, the tokens so far) → the next stride; the same arguments always give the same tokens"""


class RetrievalCache:
    """The chunks that this answer's searches have brought, ranked as the retriever ranks them."""

    def __init__(self, retriever: Retriever) -> None:
        self._retriever = retriever
        self._ids = np.empty(0, dtype=np.int64)

    def insert(self, ids: np.ndarray) -> None:
        self._ids = np.union1d(self._ids, ids)

    def best(self, query: Any) -> int | None:
        """The cached chunk that ``search`` would rank first among them; None where it would return none."""
        scores = self._retriever.score(query, self._ids)
        if not len(scores) or scores.max() == -np.inf:
            return None
        return int(self._ids[np.argmax(scores)])  # ids rise, and argmax takes the first of equals


@dataclass
class SpeculationStats:
    """What one answer did."""

    strides: int = 0
    """verified"""
    guesses: int = 0
    """that were verified, right or wrong"""
    accepted: int = 0
    windows: list[int] = field(default_factory=list)
    """guesses in each; 0 where the search came first"""
    searches: int = 0
    queries: int = 0
    retries: int = 0
    search_s: float = 0.0
    """in searches, also in those that ran beside the writing"""
    single_search_s: float = 0.0
    """of the last search for one query"""
    written: int = 0
    """strides written, wrong ones included"""
    total_s: float = 0.0


@dataclass(frozen=True)
class _Guess:
    query: Any
    chunk: int
    start: int
    """tokens before it"""
    stride: Stride
    seconds: float


class IterativeRetrieval:
    """One text written with retrieval at every stride. ``begin`` first, then one of the two loops.

    Errors: RetrieverFailed where the retriever failed or timed out twice in a row; whatever ``write`` raises.
    """

    def __init__(
        self,
        retriever: Retriever,
        write: Write,
        query_text: Callable[[Sequence[int]], str],
        options: SpeculationOptions | None = None,
        experience: Experience | None = None,
    ) -> None:
        """experience: of earlier texts by this model and retriever, which this one adds to; None for a text alone."""
        self.options = options or SpeculationOptions()
        self.stats = SpeculationStats()
        self.scheduler = StrideScheduler(self.options, experience)
        self.tokens: list[int] = []
        """verified, and while a window is open those of its guesses"""
        self._retriever = retriever
        self._write = write
        self._query_text = query_text
        self._cache = RetrievalCache(retriever)
        self._chunk = -1  # of the last verified stride
        self._began = time.perf_counter()

    async def begin(self) -> np.ndarray:
        """Search for the first query; time counts from here.

        Returns the ids found, best first; where there are none, no loop can run.
        """
        self._began = time.perf_counter()
        query = await self._query()
        self.scheduler.a = time.perf_counter() - self._began
        found = await self._search([query])
        if len(found[0]):
            self._chunk = int(found[0][0])
        return found[0]

    async def sequential(self) -> AsyncGenerator[Stride, None]:
        """The strides of the text, each written behind the chunk that was searched for it."""
        stride = await self._written(self._chunk)
        while True:
            self._keep(stride)
            self.stats.total_s = time.perf_counter() - self._began
            yield stride
            if stride.finish:
                return
            stride = await self._search_and_write()

    async def speculative(self) -> AsyncGenerator[Stride, None]:
        """The same strides, each given once it is verified."""
        began = time.perf_counter()
        stride = await self._written(self._chunk)
        self._keep(stride)
        self.scheduler.a += time.perf_counter() - began
        self.stats.total_s = time.perf_counter() - self._began
        yield stride
        ahead: list[_Guess] = []
        while not stride.finish:
            size = self.scheduler.next()
            if size == 0 and not ahead:
                verified = [await self._search_and_write(judge=True)]
                self._keep(verified[0])
            else:
                verified, ahead = await self._window(ahead, size)
            self.stats.total_s = time.perf_counter() - self._began
            for stride in verified:
                yield stride

    def figures(self) -> dict[str, Any]:
        """What to tell of the text so far.

        ``retrieval_share`` is the share of searching in the sequential loop's time (measured there, else estimated from
        one search and one stride), and ``amdahl_ceiling`` the speed-up of a loop that would never wait for a search.
        """
        stats, scheduler = self.stats, self.scheduler
        if stats.guesses:
            share = stats.single_search_s / (stats.single_search_s + scheduler.a)
        else:
            share = stats.search_s / stats.total_s if stats.total_s else 0.0
        return {
            "strides": stats.strides,
            "strides_written": stats.written,
            "guesses": stats.guesses,
            "accepted": stats.accepted,
            "acceptance": stats.accepted / stats.guesses if stats.guesses else None,
            "a_ms": 1000 * scheduler.a,
            "b_ms": 1000 * scheduler.b,
            "gamma": scheduler.gamma,
            "stride": stats.windows[-1] if stats.windows else None,
            "mean_stride": sum(stats.windows) / len(stats.windows) if stats.windows else None,
            "searches": stats.searches,
            "search_ms": 1000 * stats.search_s,
            "total_ms": 1000 * stats.total_s,
            "retrieval_share": share,
            "amdahl_ceiling": 1 / (1 - share),
            "retries": stats.retries,
        }

    async def _search_and_write(self, judge: bool = False) -> Stride:
        """One stride the sequential way; with ``judge`` the scheduler learns whether a guess had been right."""
        began = time.perf_counter()
        query = await self._query()
        guess = self._guessed_chunk(query) if judge else None
        encoded = time.perf_counter()
        found = await self._search([query])
        searched = time.perf_counter()
        self._chunk = _first(found[0], self._chunk)
        stride = await self._written(self._chunk)
        if judge:
            self.scheduler.record(int(guess == self._chunk), 1)
            self.scheduler.guessed(1, encoded - began + time.perf_counter() - searched)
            self.stats.windows.append(0)
        return stride

    async def _window(self, ahead: list[_Guess], size: int) -> tuple[list[Stride], list[_Guess]]:
        """Guess, verify, and write the first wrong one again.

        ahead: guesses that were made while the last window was verified.
        Returns (verified strides, the guesses made while these were).
        """
        window = list(ahead)
        while len(window) < size and not (window and window[-1].stride.finish):
            window.append(await self._guess())
        self.scheduler.guessed(len(window), sum(guess.seconds for guess in window))
        verifying = asyncio.create_task(self._search([guess.query for guess in window]))
        beside = asyncio.create_task(self._write_ahead(verifying, window[-1]))
        try:
            found = await verifying
            matched = self._matched(window, found)
            self._count(matched, len(window))
            verified = [guess.stride for guess in window[:matched]]
            if matched == len(window):
                return verified, await beside
        finally:
            await _drop(verifying)
            await _drop(beside)
        del self.tokens[window[matched].start :]
        stride = await self._written(self._chunk)
        self._keep(stride)
        return [*verified, stride], []

    async def _write_ahead(self, verifying: asyncio.Task[Any], last: _Guess) -> list[_Guess]:
        """Guess on behind a window for as long as its verification takes."""
        ahead: list[_Guess] = []
        while self.options.overlap and not verifying.done() and not last.stride.finish:
            last = await self._guess()
            ahead.append(last)
        return ahead

    def _matched(self, window: Sequence[_Guess], found: Sequence[np.ndarray]) -> int:
        """How many leading guesses were right; the chunk in force becomes that of the last verified or first wrong."""
        for number, (guess, ids) in enumerate(zip(window, found, strict=True)):
            self._chunk = _first(ids, self._chunk)
            if guess.chunk != self._chunk:
                return number
        return len(window)

    def _count(self, matched: int, guessed: int) -> None:
        self.scheduler.record(matched, guessed)
        self.stats.windows.append(guessed)
        self.stats.guesses += min(matched + 1, guessed)
        self.stats.accepted += matched
        self.stats.strides += matched

    async def _guess(self) -> _Guess:
        """Write one stride behind the chunk that the cache ranks first."""
        began, start = time.perf_counter(), len(self.tokens)
        query = await self._query()
        chunk = self._guessed_chunk(query)
        stride = await self._written(chunk)
        self.tokens += stride.tokens
        return _Guess(query, chunk, start, stride, time.perf_counter() - began)

    def _guessed_chunk(self, query: Any) -> int:
        best = self._cache.best(query)
        return self._chunk if best is None else best

    def _keep(self, stride: Stride) -> None:
        self.tokens += stride.tokens
        self.stats.strides += 1

    async def _written(self, chunk: int) -> Stride:
        self.stats.written += 1
        return await self._write(chunk, list(self.tokens))

    async def _query(self) -> Any:
        return await self._ask(self._retriever.query, self._query_text(self.tokens))

    async def _search(self, queries: list[Any]) -> list[np.ndarray]:
        """Batched; what is found goes into the cache."""
        began = time.perf_counter()
        found = await self._ask(self._retriever.search, queries, self.options.prefetch)
        seconds = time.perf_counter() - began
        self.stats.searches += 1
        self.stats.queries += len(queries)
        self.stats.search_s += seconds
        if len(queries) == 1:
            self.stats.single_search_s = seconds
        self.scheduler.searched(len(queries), seconds)
        self._cache.insert(np.concatenate(found))
        return found

    async def _ask(self, call: Callable[..., Any], *arguments: Any) -> Any:
        """Call the retriever in a thread; once more where it fails or takes too long."""
        for last in (False, True):
            try:
                return await asyncio.wait_for(asyncio.to_thread(call, *arguments), self.options.timeout_s)
            except Exception as error:
                late = isinstance(error, TimeoutError)
                why = f"no answer within {self.options.timeout_s:g} s" if late else str(error) or type(error).__name__
                if last:
                    message = f"the retriever failed twice ({why}); what was written before stands"
                    raise RetrieverFailed(message) from error
                self.stats.retries += 1
                log.warning("retriever failed, trying once more", cause=why)
        raise AssertionError("unreachable")


async def _drop(task: asyncio.Task[Any]) -> None:
    """End a task whose result, or failure, nobody wants any longer."""
    task.cancel()
    await asyncio.wait({task})
    if not task.cancelled():
        task.exception()


def _first(ids: np.ndarray, otherwise: int) -> int:
    """The best chunk; the one before it where nothing was found."""
    return int(ids[0]) if len(ids) else otherwise

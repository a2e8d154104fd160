"""RaLMSpec: retrieval every few tokens, guessed from a cache and verified in batches (arXiv 2401.14021).

A text is written in *strides*: some tokens more, or the whole text anew. Each says what the next search is asked with,
and the best chunk replaces the one before it in the prompt. ``IterativeRetrieval.sequential`` does just that.
``speculative`` guesses the best chunk from those that earlier searches brought, under the retriever's own metric. One
batched search then verifies a window of guesses and, asked along with them, finds the chunk of the stride behind them,
so that this one is not left to a guess. The first wrong stride is written again, and what was written behind it too,
unless it comes out the same. Both give the same tokens, because the query, and so the true chunk, depends on the
verified strides alone.

The loops know no model and no index: ``write`` continues a text given a chunk, a ``Retriever`` searches. How long a
stride is and what it asks for is the writer's: a few tokens and the last ones (RaLM), sentences up to one that the
model is unsure of and the rest of that one (FLARE), whole answers (Iter-RetGen).
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import structlog

from retrieval.errors import RetrieverFailed
from retrieval.iterative.strides import Experience, SpeculationOptions, StrideScheduler

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

    def likeness(self, query: Any, other: Any) -> float:
        """How much two queries have in common, 1 for equal ones: the more, the likelier the same chunks are best."""


@dataclass(frozen=True)
class Stride:
    """Some tokens written behind a chunk.

    Attributes:
        query: what the search for the next stride's chunk is asked with.
        finish: why the text ends with them; None where it goes on.
        whole: they are the text, in place of what was written before.
    """

    chunk: int
    tokens: list[int]
    query: str
    finish: str | None = None
    whole: bool = False

    def same_as(self, other: Stride) -> bool:
        """Whether a text goes on behind both alike, whatever chunk they were written behind."""
        return replace(self, chunk=other.chunk) == other


def written(strides: Sequence[Stride]) -> list[int]:
    """The tokens of the text."""
    tokens: list[int] = []
    for stride in strides:
        tokens = list(stride.tokens) if stride.whole else tokens + stride.tokens
    return tokens


Write = Callable[[int, Sequence[Stride]], Awaitable[Stride]]
"""(chunk id, the strides so far) → the next one; the same chunk and strides, whatever these were written behind, always
give the same"""


class RetrievalCache:
    """The chunks that this answer's latest searches have brought, ranked as the retriever ranks them."""

    KEPT = 4
    """searches: what older ones brought is hardly ever the best again, and ranking it takes time before every stride"""

    def __init__(self, retriever: Retriever) -> None:
        self._retriever = retriever
        self._found: deque[np.ndarray] = deque(maxlen=self.KEPT)
        self._ids = np.empty(0, dtype=np.int64)

    def insert(self, ids: np.ndarray) -> None:
        """What a search brought for one query."""
        self._found.append(ids)
        self._ids = np.unique(np.concatenate(self._found))

    def best(self, query: Any) -> int | None:
        """The cached chunk that ``search`` would rank first among them; None where it would return none."""
        scores = self._retriever.score(query, self._ids)
        if not len(scores) or scores.max() == -np.inf:
            return None
        return int(self._ids[np.argmax(scores)])  # ids rise, and argmax takes the first of equals


@dataclass
class SpeculationStats:
    """What one answer did.

    Attributes:
        strides: verified.
        guesses: that were verified, right or wrong.
        windows: strides that each search decided about; 1 where nothing was guessed.
        search_s: in searches, also in those that ran beside the writing.
        single_search_s: of the last search for one query.
        written: strides written, wrong ones included.
    """

    strides: int = 0
    guesses: int = 0
    accepted: int = 0
    windows: list[int] = field(default_factory=list)
    searches: int = 0
    queries: int = 0
    retries: int = 0
    search_s: float = 0.0
    single_search_s: float = 0.0
    written: int = 0
    total_s: float = 0.0


@dataclass(frozen=True)
class _Asked:
    """A query and what the cache answers.

    Attributes:
        likeness: to the last query that was searched for and counted.
        start: strides before it.
    """

    query: Any
    chunk: int
    likeness: float
    start: int
    seconds: float


@dataclass(frozen=True)
class _Guess:
    asked: _Asked
    stride: Stride


class IterativeRetrieval:
    """One text written with retrieval at every stride. ``begin`` first, then one of the two loops.

    Errors: RetrieverFailed where the retriever failed or timed out twice in a row; whatever ``write`` raises.
    """

    def __init__(
        self,
        retriever: Retriever,
        write: Write,
        query: str,
        options: SpeculationOptions | None = None,
        experience: Experience | None = None,
    ) -> None:
        """
        Args:
            query: what the first search is asked with.
            experience: of earlier texts by this model and retriever, which this one adds to; None for a text alone.
        """
        self.options = options or SpeculationOptions()
        self.stats = SpeculationStats()
        self.scheduler = StrideScheduler(self.options, experience)
        self.strides: list[Stride] = []
        """verified, and while a window is open its guesses"""
        self._retriever = retriever
        self._write = write
        self._first_query = query
        self._cache = RetrievalCache(retriever)
        self._chunk = -1  # of the last verified stride
        self._searched: Any = None  # its query
        self._began = time.perf_counter()

    async def begin(self) -> np.ndarray:
        """Search for the first query; time counts from here.

        Returns the ids found, best first; where there are none, no loop can run.
        """
        self._began = time.perf_counter()
        query = await self._query()
        self.scheduler.a = time.perf_counter() - self._began
        found = await self._search([query])
        self._learn(query, found[0])
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
            found = await self._search([await self._query()])
            self._chunk = _first(found[0], self._chunk)
            stride = await self._written(self._chunk)

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
            verified, ahead = await self._window(ahead)
            self.stats.strides += len(verified)
            self.stats.total_s = time.perf_counter() - self._began
            for stride in verified:
                yield stride

    @property
    def tokens(self) -> list[int]:
        """The text so far."""
        return written(self.strides)

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

    async def _window(self, ahead: list[_Guess]) -> tuple[list[Stride], list[_Guess]]:
        """Guess while it pays, verify, and write the stride that then is certain.

        ahead: guesses that were made while the last window was verified.
        Returns (verified strides, the guesses made while these were).
        """
        window, last = await self._guesses(ahead)
        asked = [guess.asked for guess in window] + ([last] if last else [])
        verifying = asyncio.create_task(self._search([one.query for one in asked]))
        beside = asyncio.create_task(self._write_ahead(verifying, last))
        try:
            found = await verifying
            matched = self._judge(asked, found)
            self.stats.windows.append(len(asked))
            ahead = await beside if matched == len(asked) else []
        finally:
            await _drop(verifying)
            await _drop(beside)
        verified = await self._settled([*window, *ahead[:1]], asked, found)
        return verified, ahead[1:]

    async def _guesses(self, ahead: list[_Guess]) -> tuple[list[_Guess], _Asked | None]:
        """(the guesses of a window, the query behind them; None where the text may end with the last guess)."""
        window = list(ahead)
        self.scheduler.open()
        for guess in ahead:
            self.scheduler.made(guess.asked.likeness)
        while not (window and window[-1].stride.finish):
            asked = await self._ask_cache()
            if not self.scheduler.take(asked.likeness):
                return window, asked
            window.append(await self._guess(asked))
        return window, None

    async def _write_ahead(self, verifying: asyncio.Task[Any], asked: _Asked | None) -> list[_Guess]:
        """Guess on behind a window for as long as its verification takes."""
        ahead: list[_Guess] = []
        while self.options.overlap and asked is not None and not verifying.done():
            ahead.append(await self._guess(asked))
            done = ahead[-1].stride.finish or verifying.done()
            asked = None if done else await self._ask_cache()
        return ahead

    def _judge(self, asked: Sequence[_Asked], found: Sequence[np.ndarray]) -> int:
        """How many leading answers of the cache were right."""
        matched, chunk = 0, self._chunk
        for one, ids in zip(asked, found, strict=True):
            chunk = _first(ids, chunk)
            self.scheduler.turned_out(one.likeness, one.chunk == chunk)
            if one.chunk != chunk:
                break
            matched += 1
        self.scheduler.record(matched, len(asked))
        return matched

    async def _settled(
        self, guesses: Sequence[_Guess], asked: Sequence[_Asked], found: Sequence[np.ndarray]
    ) -> list[Stride]:
        """The strides that are certain now; ``strides`` ends with them, unless all guesses were right."""
        verified: list[Stride] = []
        for number, (one, ids) in enumerate(zip(asked, found, strict=True)):
            self._learn(one.query, ids)
            guess = guesses[number].stride if number < len(guesses) else None
            self.stats.guesses += guess is not None
            if guess is not None and guess.chunk == self._chunk:
                self.stats.accepted += 1
                verified.append(guess)
                continue
            stride = await self._written(self._chunk, one.start)
            verified.append(stride)
            if guess is None or not stride.same_as(guess):
                self.strides[one.start :] = [stride]
                break
            self.strides[one.start] = stride
        return verified

    def _learn(self, query: Any, ids: np.ndarray) -> None:
        """A query of the verified text has found these chunks."""
        self._searched = query
        self._chunk = _first(ids, self._chunk)
        self._cache.insert(ids)

    async def _ask_cache(self) -> _Asked:
        """The query of the next stride, and the chunk that the cache ranks first for it."""
        began = time.perf_counter()
        query = await self._query()
        best = self._cache.best(query)
        likeness = self._retriever.likeness(query, self._searched)
        chunk = self._chunk if best is None else best
        return _Asked(query, chunk, likeness, len(self.strides), time.perf_counter() - began)

    async def _guess(self, asked: _Asked) -> _Guess:
        """Write one stride behind the chunk that the cache ranks first."""
        began = time.perf_counter()
        stride = await self._written(asked.chunk)
        self.strides.append(stride)
        # one by one: a line through windows would take for a cost of the window that guesses in short ones are slow,
        # which are short because the query drifts, and slow because the passage then changes
        self.scheduler.guessed(1, asked.seconds + time.perf_counter() - began)
        return _Guess(asked, stride)

    def _keep(self, stride: Stride) -> None:
        self.strides.append(stride)
        self.stats.strides += 1

    async def _written(self, chunk: int, start: int | None = None) -> Stride:
        """The stride behind the first ``start`` ones, all by default."""
        self.stats.written += 1
        return await self._write(chunk, self.strides[:start])

    async def _query(self) -> Any:
        return await self._ask(self._retriever.query, self.strides[-1].query if self.strides else self._first_query)

    async def _search(self, queries: list[Any]) -> list[np.ndarray]:
        """Batched."""
        began = time.perf_counter()
        found = await self._ask(self._retriever.search, queries, self.options.prefetch)
        seconds = time.perf_counter() - began
        self.stats.searches += 1
        self.stats.queries += len(queries)
        self.stats.search_s += seconds
        if len(queries) == 1:
            self.stats.single_search_s = seconds
        self.scheduler.searched(len(queries), seconds)
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

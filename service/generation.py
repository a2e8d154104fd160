"""The way to the engine: every prompt of every front end passes here.

It refuses what can never run, bounds the queue, keeps the time limits, and drains on shutdown. Whoever stops
iterating (a client that left, a time-out, Ctrl-C) closes the stream, and closing it aborts the request.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from typing import TYPE_CHECKING, cast

import structlog

from service.errors import Busy, GenerationFailed, InvalidRequest, PromptTooLong, TimedOut, Unavailable
from service.settings import Settings

if TYPE_CHECKING:
    from service.engine.async_engine import AsyncEngine
    from service.engine.mixture import MixtureSource
    from service.engine.request import DraftSources, SamplingParams, TokenOutput

log = structlog.get_logger(__name__)

Observer = Callable[["TokenOutput", float, bool], None]
"""Called with each output, the seconds since the request or its previous output, and whether it is the first."""


class Generator:
    """Bounded, timed, drainable access to one engine."""

    def __init__(self, engine: AsyncEngine, settings: Settings, observers: Sequence[Observer] = ()) -> None:
        self.async_engine = engine
        self.settings = settings
        self.observers = observers
        self.in_flight = 0
        self.draining = False
        inner = engine.engine
        self.window = inner.window
        """Most tokens of prompt and answer together, by the model and by the KV pool."""

    def check(self, prompt_tokens: int, max_tokens: int, param: str = "messages") -> None:
        """Refuse a request that can never run."""
        if prompt_tokens == 0:
            raise InvalidRequest("The prompt is empty.", param=param)
        if prompt_tokens + max_tokens > self.window:
            raise PromptTooLong(
                f"The prompt has {prompt_tokens} tokens and the answer may have {max_tokens}; "
                f"this model holds {self.window}.",
                hint="Shorten the prompt, lower max_tokens, or use retrieval.",
                param=param,
            )

    def check_options(self, params: SamplingParams) -> None:
        """Refuse a drafter that does not exist, or an attention policy that the model does not allow.

        Raises InvalidRequest.
        """
        from service.engine.drafting.drafting import checked_drafter
        from service.engine.kv.layout import checked_policy

        if params.drafter:
            checked_drafter(params.drafter)
        if params.attention:
            checked_policy(params.attention, self.async_engine.engine.shape)

    def admit(self, requests: int = 1) -> None:
        """Refuse when draining, dead, or when the queue has no room for that many more requests.

        Raises Busy or Unavailable. Front ends call it before they start to answer.
        """
        if self.draining or not self.async_engine.ready:
            raise Unavailable("The engine takes no requests: it is loading, draining or stopped.")
        waiting = self.in_flight + requests - self.settings.max_running
        if waiting > self.settings.queue_limit:
            raise Busy(
                f"The queue is full: {self.in_flight} requests are in flight.",
                retry_after=min(60.0, 1.0 + waiting / self.settings.max_running),
                hint="Try again later.",
            )

    async def stream(
        self,
        prompt_ids: Sequence[int],
        params: SamplingParams,
        draft_sources: DraftSources | None = None,
        mixture: MixtureSource | None = None,
    ) -> AsyncGenerator[TokenOutput, None]:
        """Outputs of the engine until the request is finished; `draft_sources` is what its drafter may draw on,
        `mixture` what its tokens are chosen from besides the model.

        Raises:
            PromptTooLong, InvalidRequest: it can never run.
            Busy: the queue is full. Unavailable: draining, or the engine is dead.
            TimedOut: no first token, or no end, in time.
            GenerationFailed: the engine gave up on it.
        """
        self.check(len(prompt_ids), params.max_tokens)
        with self.place():
            async with aclosing(self._timed(prompt_ids, params, draft_sources, mixture)) as outputs:
                async for output in outputs:
                    yield output

    @contextmanager
    def place(self) -> Iterator[None]:
        """One place in the queue, for an answer of many requests one after another (`continued`).

        Raises as `admit` does.
        """
        self.admit()
        self.in_flight += 1
        try:
            yield
        finally:
            self.in_flight -= 1

    async def continued(self, prompt_ids: Sequence[int], params: SamplingParams) -> AsyncGenerator[TokenOutput, None]:
        """One of the requests for which there is a `place`: as `stream`, but neither counted nor observed."""
        async with aclosing(self._timed(prompt_ids, params, None, observed=False)) as outputs:
            async for output in outputs:
                yield output

    def observe(self, output: TokenOutput, seconds: float, first: bool) -> None:
        """Tell the observers of an output that took `seconds`."""
        for observe in self.observers:
            observe(output, seconds, first)

    async def drain(self, timeout_s: float) -> bool:
        """Accept nothing more and wait for what is in flight; True when all of it ended in time."""
        self.draining = True
        deadline = time.monotonic() + timeout_s
        while self.in_flight and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
        return self.in_flight == 0

    async def _timed(
        self,
        prompt_ids: Sequence[int],
        params: SamplingParams,
        draft_sources: DraftSources | None,
        mixture: MixtureSource | None = None,
        observed: bool = True,
    ) -> AsyncGenerator[TokenOutput, None]:
        """The engine's outputs under the two time limits."""
        limits = self.settings
        began = last = time.monotonic()
        first = True
        generated = self.async_engine.generate(prompt_ids, params, draft_sources=draft_sources, mixture=mixture)
        running = cast("AsyncGenerator[TokenOutput, None]", generated)
        async with aclosing(running) as outputs:
            while True:
                left = limits.total_timeout_s - (time.monotonic() - began)
                try:
                    async with asyncio.timeout(min(left, limits.first_token_timeout_s) if first else left):
                        output = await anext(outputs)
                except StopAsyncIteration:
                    return
                except TimeoutError as error:
                    what = "No first token came" if first else "The answer was not finished"
                    raise TimedOut(f"{what} within {time.monotonic() - began:.0f} s.") from error
                except GenerationFailed as error:
                    log.error("generation failed", error=error.message)
                    raise GenerationFailed(
                        "The engine failed in the midst of this request.",
                        hint="The log says why; try again.",
                    ) from error
                now = time.monotonic()
                if observed:
                    self.observe(output, now - last, first)
                first, last = False, now
                yield output


def fit_tokens(window: int, prompt_tokens: int, most: int) -> int:
    """New tokens for a request that names no limit: `most`, or what the window leaves; at least 1."""
    return max(1, min(most, window - prompt_tokens))

"""The engine in a thread of its own, for asyncio: streams, aborts, drain, and a watchdog."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import structlog

from drafters.warm_up import warm_up
from service.engine.engine import Engine
from service.engine.mixture import MixtureSource
from service.engine.reading import Reading
from service.engine.request import DraftSources, SamplingParams, TokenOutput
from service.errors import GenerationFailed, Unavailable

log = structlog.get_logger(__name__)


@dataclass
class _Stream:
    """Where a request's outputs go: a queue of the event loop that asked."""

    loop: asyncio.AbstractEventLoop
    outputs: asyncio.Queue[TokenOutput | Exception]

    def put(self, item: TokenOutput | Exception) -> None:
        try:
            self.loop.call_soon_threadsafe(self.outputs.put_nowait, item)
        except RuntimeError:  # the loop is closed: nobody listens any longer
            log.debug("output dropped, event loop closed")


class AsyncEngine:
    """Owns an ``Engine`` and the one thread that touches it.

    Commands reach the thread through a queue and run between steps. When the thread dies of an error outside a step,
    the requests in flight fail with that error and a new thread takes over an engine emptied of requests.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.restarts = 0
        self._commands: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._streams: dict[str, _Stream] = {}
        self._thread: threading.Thread | None = None
        self._stopping = False
        self._draining = False
        self._counter = 0

    @property
    def ready(self) -> bool:
        """Whether new requests are taken."""
        return self._thread is not None and self._thread.is_alive() and not self._draining

    @property
    def num_in_flight(self) -> int:
        return len(self._streams)

    async def start(self) -> None:
        """Start the engine's thread."""
        await asyncio.to_thread(warm_up)
        self._stopping = self._draining = False
        self._start_thread()

    async def generate(
        self,
        prompt_ids: Sequence[int],
        params: SamplingParams | None = None,
        request_id: str | None = None,
        draft_sources: DraftSources | None = None,
        mixture: MixtureSource | None = None,
        reading: Reading | None = None,
    ) -> AsyncGenerator[TokenOutput, None]:
        """Outputs of one request as they come, the last one finished.

        Leaving the iteration early aborts the request.

        Raises:
            InvalidRequest, PromptTooLong, Busy: refused at the door.
            Unavailable: the engine is not running, or draining.
            GenerationFailed: the engine failed in mid-request.
        """
        if not self.ready:
            raise Unavailable("The engine takes no requests: it is loading, draining or stopped.")
        self._counter += 1
        request_id = request_id or f"a{self._counter}"
        stream = _Stream(asyncio.get_running_loop(), asyncio.Queue())

        def add() -> None:
            try:
                self.engine.add_request(prompt_ids, params, request_id, draft_sources, mixture, reading)
                self._streams[request_id] = stream
            except Exception as error:
                stream.put(error)

        self._commands.put(add)
        finished = False
        try:
            while not finished:
                item = await stream.outputs.get()
                if isinstance(item, Exception):
                    finished = True
                    raise item
                finished = item.finished
                if item.finish_reason == "error":
                    raise GenerationFailed(f"Generation failed: {item.error}")
                yield item
        finally:
            if not finished:
                self._commands.put(lambda: self._abort(request_id))

    async def abort(self, request_id: str) -> None:
        """End a request; its stream finishes with reason ``abort``. Unknown ids are ignored."""
        self._commands.put(lambda: self.engine.abort(request_id))

    async def run(self, action: Callable[[Engine], Any]) -> Any:
        """Run ``action(engine)`` in the engine's thread between steps; returns its result."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()

        def settle(result: Any, error: Exception | None) -> None:
            if future.done():
                return
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(result)

        def command() -> None:
            try:
                result, error = action(self.engine), None
            except Exception as raised:
                result, error = None, raised
            loop.call_soon_threadsafe(settle, result, error)

        self._commands.put(command)
        return await future

    async def drain(self, timeout_s: float) -> bool:
        """Take no new requests, wait for those in flight; says whether all ended in time."""
        self._draining = True
        deadline = asyncio.get_running_loop().time() + timeout_s
        while self._streams and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.02)
        return not self._streams

    async def stop(self) -> None:
        """Abort what is in flight and end the thread."""
        self._draining = self._stopping = True
        self._commands.put(self._abort_all)
        thread = self._thread
        if thread is not None:
            await asyncio.to_thread(thread.join)
        self._thread = None

    def _start_thread(self) -> None:
        self._thread = threading.Thread(target=self._main, name="folio-engine", daemon=True)
        self._thread.start()

    def _main(self) -> None:
        try:
            self._loop()
        except BaseException as error:  # outside a step nothing should raise: fail what is in flight, start again
            log.exception("engine thread died", in_flight=len(self._streams))
            lost, self._streams = self._streams, {}
            self.engine.reset()
            if not self._stopping:  # before the news is out, so that whoever hears it can ask again
                self.restarts += 1
                self._start_thread()
            for stream in lost.values():
                stream.put(GenerationFailed(f"The engine failed: {type(error).__name__}: {error}"))

    def _loop(self) -> None:
        while True:
            self._run_commands(wait=not self.engine.has_work)
            for output in self.engine.step():
                self._deliver(output)
            if self._stopping and not self.engine.has_work:
                return

    def _run_commands(self, wait: bool) -> None:
        try:
            if wait and not self._stopping:
                self._commands.get(timeout=0.5)()
            while True:
                self._commands.get_nowait()()
        except queue.Empty:
            return

    def _deliver(self, output: TokenOutput) -> None:
        stream = self._streams.get(output.request_id)
        if output.finished:
            self._streams.pop(output.request_id, None)
        if stream is not None:
            stream.put(output)

    def _abort(self, request_id: str) -> None:
        self._streams.pop(request_id, None)
        self.engine.abort(request_id)

    def _abort_all(self) -> None:
        for request_id in list(self._streams):
            self.engine.abort(request_id)

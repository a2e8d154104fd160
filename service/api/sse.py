"""Server-sent events: streams as a response, with pings in silence, ended when the client leaves."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any, Generic, Protocol, TypeVar

import structlog
from fastapi.sse import KEEPALIVE_COMMENT, EventSourceResponse, format_sse_event
from starlette.types import Receive, Scope, Send

from service.api.waiting import ClientLeft, end, unless_gone
from service.errors import FolioError, outward

log = structlog.get_logger(__name__)

T = TypeVar("T")
Item = TypeVar("Item", contravariant=True)


def event(data: Any, name: str | None = None) -> bytes:
    """One event; `data` is JSON on one line."""
    return format_sse_event(data_str=json.dumps(data, ensure_ascii=False), event=name)


class Writer(Protocol[Item]):
    """How a route writes what its streams bring, each as events ready to be sent; empty where there is nothing."""

    def begin(self) -> bytes: ...

    def item(self, number: int, item: Item) -> bytes:
        """An item of stream `number`."""
        ...

    def end(self) -> bytes: ...

    def failure(self, error: FolioError) -> bytes:
        """The end of a response that breaks off."""
        ...


class EventStream(EventSourceResponse, Generic[T]):
    """Sends the items of one or several streams as they come, straight from the tasks that iterate over them.

    The response begins with the first event, so that a stream which refuses before it is answered with a status. When
    the client leaves, or one stream fails, all are closed, which aborts what makes their items.
    """

    def __init__(self, streams: Sequence[AsyncGenerator[T, None]], writer: Writer[T], ping_s: float) -> None:
        self.status_code = 200
        self.background = None
        self.init_headers({"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        self._streams = streams
        self._writer = writer
        self._ping_s = ping_s
        self._send: Send
        self._sending = asyncio.Lock()
        self._started = False
        self._last = 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._send = send
        try:
            await unless_gone(receive, self._deliver())
        except ClientLeft:
            if not self._started:
                raise
        except Exception as error:
            if not self._started:
                raise
            known = outward(error)
            if known is None:
                log.exception("answer broke off", exc_info=error)
                known = FolioError("Something went wrong here; the log says what.")
            await self._write(self._writer.failure(known), more=False)

    async def _deliver(self) -> None:
        """All streams to their ends; a ping whenever nothing was sent for `ping_s` seconds."""
        pumps = {asyncio.ensure_future(self._pump(number, stream)) for number, stream in enumerate(self._streams)}
        running = pumps
        try:
            while running:
                silent = time.monotonic() - self._last if self._started else 0.0
                if silent >= self._ping_s:
                    await self._write(KEEPALIVE_COMMENT)
                    continue
                pause = self._ping_s - silent
                done, running = await asyncio.wait(running, timeout=pause, return_when=asyncio.FIRST_EXCEPTION)
                for pump in done:
                    pump.result()
        finally:
            await end(pumps)
        await self._write(self._writer.end(), more=False)

    async def _pump(self, number: int, stream: AsyncGenerator[T, None]) -> None:
        async with aclosing(stream):
            async for item in stream:
                data = self._writer.item(number, item)
                if data:
                    await self._write(data)

    async def _write(self, data: bytes, more: bool = True) -> None:
        """Send it, behind the beginning; one at a time, as there may be several streams."""
        async with self._sending:
            if not self._started:
                self._started = True
                await self._send(
                    {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
                )
                data = self._writer.begin() + data
            self._last = time.monotonic()
            await self._send({"type": "http.response.body", "body": data, "more_body": more})

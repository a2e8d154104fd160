"""Server-sent events: a stream of them as a response, with pings, ended when the client leaves."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Coroutine
from contextlib import aclosing
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

T = TypeVar("T")
PING = b": ping\n\n"


def event(data: Any, name: str | None = None) -> bytes:
    """One event; `data` is JSON on one line."""
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {json.dumps(data, ensure_ascii=False)}\n\n".encode()


class EventStream(StreamingResponse):
    """A response that sends events as they come. Closing the source aborts what makes them."""

    media_type = "text/event-stream"

    def __init__(self, source: AsyncGenerator[bytes, None], ping_s: float) -> None:
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        self.events = with_pings(source, ping_s)
        super().__init__(self.events, headers=headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self.events):
            await super().__call__(scope, receive, send)


async def with_pings(source: AsyncGenerator[bytes, None], ping_s: float) -> AsyncGenerator[bytes, None]:
    """The source's items, and a comment whenever it is silent for `ping_s` seconds.

    The pause must not cancel the source, so each of its items is awaited in a task that outlives the pause.
    """
    pending: asyncio.Task[bytes] | None = None
    async with aclosing(source):
        try:
            while True:
                pending = pending or asyncio.ensure_future(anext(source))
                done, _ = await asyncio.wait({pending}, timeout=ping_s)
                if not done:
                    yield PING
                    continue
                finished, pending = pending, None
                try:
                    yield finished.result()
                except StopAsyncIteration:
                    return
        finally:
            if pending is not None:
                pending.cancel()
                await asyncio.gather(pending, return_exceptions=True)


async def first_item(source: AsyncGenerator[Any, None]) -> AsyncGenerator[Any, None]:
    """The same stream, its first item already made, so that an early refusal is still a status and not an event."""
    try:
        first = await anext(source)
    except StopAsyncIteration:
        return _chain([], source)
    return _chain([first], source)


async def _chain(head: list[Any], source: AsyncGenerator[Any, None]) -> AsyncGenerator[Any, None]:
    async with aclosing(source):
        for item in head:
            yield item
        async for item in source:
            yield item


class ClientLeft(Exception):
    """The client closed the connection: nobody waits for the answer."""


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled when the client leaves before it is done.

    Raises ClientLeft then. The body of the request must have been read already.
    """

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientLeft
        return working.result()
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)

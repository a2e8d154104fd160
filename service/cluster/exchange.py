"""One request through an ASGI application without a socket, as a stream of messages that can cross processes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

from starlette.types import ASGIApp, Message, Scope

ACCEPTED = "folio.accepted"
"""Type of the first message of every answer of a replica: it has the request."""
LEAVING_S = 5.0
"""Time for the application to let go of a request whose client has left."""


async def exchange(app: ASGIApp, scope: Scope, body: bytes) -> AsyncGenerator[list[Message], None]:
    """Run an ASGI application on one request whose body is known; its messages as they come.

    Closing the generator tells the application that its client has left. What it raises is raised here.
    """
    messages: asyncio.Queue[Message | None] = asyncio.Queue()
    left = asyncio.Event()
    pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Message:
        if pending:
            return pending.pop()
        await left.wait()
        return {"type": "http.disconnect"}

    async def run() -> None:
        try:
            await app(scope, receive, messages.put)
        finally:
            messages.put_nowait(None)

    running = asyncio.create_task(run())
    try:
        ended = False
        while not ended:
            batch: list[Any] = [await messages.get()]
            while not messages.empty():
                batch.append(messages.get_nowait())
            ended = batch[-1] is None
            if batch := [message for message in batch if message is not None]:
                yield batch
        await running
    finally:
        left.set()
        await asyncio.wait({running}, timeout=LEAVING_S)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

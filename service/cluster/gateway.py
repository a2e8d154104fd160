"""In front of the replicas: takes a request whole, sends it where its pages are, passes on the answer as it comes.

A replica that ends takes its requests in flight with it. What only reads is asked again of another replica, as long as
nothing of the answer has been sent. A generation is not: the request may be what ended its replica, and would end the
next ones too. Its client gets one clear sentence, as a status or, in mid-stream, as an error event.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import Any, Protocol

import structlog
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from service.api.errors import (
    anthropic_problem,
    is_anthropic,
    is_openai,
    openai_problem,
    response_for,
    response_to,
)
from service.api.sse import event
from service.cluster.exchange import ACCEPTED
from service.cluster.figures import merged
from service.cluster.keys import affinity_key
from service.errors import FolioError, ReplicaLost, TooLarge

log = structlog.get_logger(__name__)

READS = ("/v1/search",)
"""POST routes that change nothing and generate nothing."""
READ_ATTEMPTS = 3
LOST = "The replica that was answering this request has ended."
SCOPE_KEYS = ("type", "asgi", "http_version", "method", "scheme", "path", "raw_path", "query_string", "headers")
"""What of a scope the application needs; the rest belongs to this process."""


class Replicas(Protocol):
    """The engines behind a gateway."""

    def send(self, scope: Scope, body: bytes, key: str | None) -> AsyncGenerator[Sequence[Message], None]:
        """The ASGI messages of one replica, chosen by `key`, the first of type `exchange.ACCEPTED`.

        Closing the generator ends the work. Raises ReplicaLost, or Unavailable or Busy when none takes the request.
        """
        ...

    async def figures(self) -> Mapping[str, str]:
        """Replica → its Prometheus text."""
        ...


class Gateway:
    """An ASGI application that answers with the applications of others."""

    def __init__(self, replicas: Replicas) -> None:
        self.replicas = replicas

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
            return
        if scope["type"] != "http":
            return
        try:
            body = await _whole_body(receive)
        except HTTPException as refused:  # the limit on bodies without a declared length
            await response_for(scope["path"], TooLarge(refused.detail))(scope, receive, send)
            return
        if body is None:
            return
        reply = Reply(scope, send)
        answering = asyncio.ensure_future(self._answer(scope, body, reply))
        leaving = asyncio.ensure_future(_disconnected(receive))
        try:
            await asyncio.wait({answering, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if answering.done():
                answering.result()
        finally:
            for task in (answering, leaving):
                task.cancel()
            await asyncio.gather(answering, leaving, return_exceptions=True)

    async def _answer(self, scope: Scope, body: bytes, reply: Reply) -> None:
        attempts = READ_ATTEMPTS if _only_reads(scope) else 1
        for left in reversed(range(attempts)):
            try:
                await self._exchange(scope, body, reply)
                return
            except ReplicaLost:
                log.warning("replica lost", path=scope["path"], again=left > 0 and not reply.started)
                if left == 0 or reply.started:
                    await reply.fail(ReplicaLost(LOST, hint=_after_loss(scope)))
                    return
            except Exception as error:
                await reply.fail(error)
                return

    async def _exchange(self, scope: Scope, body: bytes, reply: Reply) -> None:
        """One request to one replica. Raises ReplicaLost when the answer breaks off."""
        headers = Headers(scope=scope)
        key = affinity_key(scope["method"], scope["path"], headers, body)
        needed = {name: scope[name] for name in SCOPE_KEYS if name in scope}
        async with aclosing(self.replicas.send(needed, body, key)) as batches:
            async for messages in batches:
                for message in messages:
                    await self._pass_on(message, reply)
        if not reply.finished:
            raise ReplicaLost(LOST)

    async def _pass_on(self, message: Message, reply: Reply) -> None:
        if message["type"] == ACCEPTED:
            reply.replica = message["replica"]
        elif reply.path == "/metrics" and message["type"] == "http.response.start" and message["status"] == 200:
            # One replica has checked the key; the figures are those of all.
            text = merged(await self.replicas.figures())
            await reply.respond(Response(text, media_type=CONTENT_TYPE_LATEST))
        else:
            await reply.send(message)


class Reply:
    """What has been sent to the client of one request."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self.scope = scope
        self.path: str = scope["path"]
        self.replica = ""
        self.started = False
        self.finished = False
        self._send = send
        self._event_stream = False

    async def send(self, message: Message) -> None:
        """Pass on one ASGI message, naming the replica; nothing after the end."""
        if self.finished:
            return
        if message["type"] == "http.response.start":
            self.started = True
            self._event_stream = (
                Headers(raw=list(message["headers"])).get("content-type", "").startswith("text/event-stream")
            )
            message = {**message, "headers": [*message["headers"], (b"x-folio-replica", self.replica.encode())]}
        elif not message.get("more_body", False):
            self.finished = True
        await self._send(message)

    async def respond(self, response: Response) -> None:
        """A whole response of our own."""
        await response(self.scope, _nothing, self.send)

    async def fail(self, error: Exception) -> None:
        """Say what went wrong: by a status, by an event, or, in mid-body, by breaking off."""
        if not isinstance(error, FolioError):
            if self.started:
                log.error("answer broke off", path=self.path, exc_info=error)
                error = FolioError("Something went wrong here; the log says what.")
            else:
                await self.respond(response_to(self.path, error))
                return
        if not self.started:
            await self.respond(response_for(self.path, error))
        elif self._event_stream and not self.finished:
            await self.send({"type": "http.response.body", "body": _error_events(self.path, error)})
        elif not self.finished:
            raise error


def _error_events(path: str, error: FolioError) -> bytes:
    """The end of a stream that broke off, in the manner of the route."""
    if is_anthropic(path):
        return event(anthropic_problem(error), "error")
    if is_openai(path):
        return event(openai_problem(path, error))
    return event(error.as_problem(), "error") + event({"finish_reason": "error"}, "done")


def _only_reads(scope: Scope) -> bool:
    return scope["method"] in ("GET", "HEAD", "OPTIONS") or scope["path"] in READS


def _after_loss(scope: Scope) -> str:
    if scope["method"] == "POST" and scope["path"] == "/v1/documents":
        return "The file may have been taken all the same; send it again, the same content is never stored twice."
    return "Send it again; another replica takes it."


async def _whole_body(receive: Receive) -> bytes | None:
    """The body of a request, or None where the client left before its end."""
    parts = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(parts)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _nothing() -> Any:
    raise RuntimeError("the body has been read")


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        kind = (await receive())["type"].removeprefix("lifespan.")
        await send({"type": f"lifespan.{kind}.complete"})
        if kind == "shutdown":
            return

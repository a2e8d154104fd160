"""What a connection may ask of the service before there is a request: bytes, header fields, time, and a place.

uvicorn bounds none of these for the parser that it uses. Connections that wait (for a request to begin, or to go on)
give way to new ones when there are too many, so that no number of them keeps anybody out; when all are at work, a few
more are taken to be asked how the service is.
"""

from __future__ import annotations

import asyncio
import json
import resource
import sys
from http import HTTPStatus
from typing import Any, ClassVar

import httptools
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.api.errors import PROBLEM_TYPE, response_for
from service.errors import Busy

HEAD_BYTES = 32 * 1024
"""Of the request line and all header fields together."""
HEADER_FIELDS = 100
STRAY_BYTES = 1 << 18
"""Between head and body that are neither: extensions of chunks, trailers."""
PIPELINED = 16
"""Requests of one connection that wait for the answer to another."""
HEAD_S = 10.0
BODY_S = 30.0
BODY_BYTES = 16 * 1024
"""Of a body that have to come within each ``BODY_S``, unless it ends; and of an answer that have to be read."""
LINGER_S = 5.0
"""For the rest of a body that nobody reads: who is cut off while sending may lose the answer."""
RESERVE = 32
"""Connections beyond the limit, for those who ask how the service is."""
HEALTH = ("/healthz", "/readyz", "/health", "/ping")
OTHER_FILES = 256
"""File descriptors left to databases, indexes and models."""


class Refused(Exception):
    """What comes over the connection is not taken."""

    def __init__(self, status: HTTPStatus, why: str) -> None:
        super().__init__(why)
        self.status = status


class BoundedProtocol(HttpToolsProtocol):
    """One connection."""

    most: ClassVar[int]
    """Connections at once."""
    waiting: ClassVar[dict[BoundedProtocol, None]]
    """Those without a request under way, the longest waiting first."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._in_body = False
        self._stray = 0
        self._body_bytes = 0
        self._clock: asyncio.TimerHandle | None = None
        self._reading_clock: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.most:
            longest = next(iter(self.waiting), None)
            if longest is not None:
                longest._stop_waiting()
                longest.transport.abort()
            elif len(self.connections) > self.most + RESERVE:
                transport.abort()
            else:
                self.app = _health_alone(self.app)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        self._stop_pushing()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._stray += len(data)
        super().data_received(data)
        if self._stray > (STRAY_BYTES if self._in_body else HEAD_BYTES) and not self.transport.is_closing():
            self._refuse(_too_long())

    def on_header(self, name: bytes, value: bytes) -> None:
        if len(self.headers) >= HEADER_FIELDS:
            fields = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
            raise Refused(fields, f"A request may have {HEADER_FIELDS} header fields.")
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if len(self.url) + sum(len(name) + len(value) for name, value in self.headers) > HEAD_BYTES:
            raise _too_long()
        hosts = sum(name == b"host" for name, _ in self.headers)
        if hosts > 1 or (not hosts and self.parser.get_http_version() == "1.1"):
            raise Refused(HTTPStatus.BAD_REQUEST, f"A request names one Host; this one names {hosts}.")
        if len(self.pipeline) >= PIPELINED:
            raise Refused(HTTPStatus.BAD_REQUEST, f"At most {PIPELINED} requests may wait in one connection.")
        self._stop_waiting()
        self._stray = 0
        self._in_body = True
        super().on_headers_complete()
        self._body_bytes = 0
        self._clock = self.loop.call_later(BODY_S, self._look_at_body)

    def on_body(self, body: bytes) -> None:
        self._stray = 0
        self._body_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._stop_waiting()
        self._stray = 0
        self._in_body = False
        super().on_message_complete()
        if self.cycle.response_complete:
            self._await_head()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._in_body:
            self._stop_waiting()
            self._clock = self.loop.call_later(LINGER_S, self.transport.close)
        elif not self.pipeline and self.cycle.response_complete and not self.transport.is_closing():
            self._await_head()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stop_pushing()
        self._push(self.transport.get_write_buffer_size() + BODY_BYTES)

    def resume_writing(self) -> None:
        self._stop_pushing()
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        """uvicorn calls it from where the parser's error is handled."""
        error = sys.exception()
        cause = error.__context__ if isinstance(error, httptools.HttpParserCallbackError) else None
        this = cause if isinstance(cause, Refused) else Refused(HTTPStatus.BAD_REQUEST, "This is no request of HTTP.")
        self._refuse(this)

    def _await_head(self) -> None:
        self._stop_waiting()
        self.waiting[self] = None
        self._clock = self.loop.call_later(HEAD_S, self._end_waiting)

    def _stop_waiting(self) -> None:
        self.waiting.pop(self, None)
        if self._clock is not None:
            self._clock.cancel()
            self._clock = None

    def _end_waiting(self) -> None:
        if self._stray:
            self._refuse(Refused(HTTPStatus.REQUEST_TIMEOUT, f"The request did not come within {HEAD_S:.0f} s."))
        else:
            self.transport.close()

    def _look_at_body(self) -> None:
        if self._body_bytes < BODY_BYTES and not self.flow.read_paused:
            self._refuse(Refused(HTTPStatus.REQUEST_TIMEOUT, f"The body came to a stop for {BODY_S:.0f} s."))
            return
        self._body_bytes = 0
        self._clock = self.loop.call_later(BODY_S, self._look_at_body)

    def _push(self, before: int) -> None:
        """Give up on a client that does not read; it may have hung up long ago."""
        size = self.transport.get_write_buffer_size()
        if size > before - BODY_BYTES:
            self.transport.abort()
        else:
            self._reading_clock = self.loop.call_later(BODY_S, self._push, size)

    def _stop_pushing(self) -> None:
        if self._reading_clock is not None:
            self._reading_clock.cancel()
            self._reading_clock = None

    def _refuse(self, refused: Refused) -> None:
        """Say why, where no other answer stands on the line, and hang up."""
        self._stop_waiting()
        if not self.pipeline and (
            self.cycle is None or self.cycle.response_complete or not self.cycle.response_started
        ):
            status = refused.status
            slug = status.phrase.lower().replace(" ", "-")
            problem = {"type": f"urn:folio:problem:{slug}", "title": status.phrase, "status": int(status)}
            body = json.dumps(problem | {"detail": str(refused)}).encode()
            head = f"HTTP/1.1 {status.value} {status.phrase}\r\ncontent-type: {PROBLEM_TYPE}\r\n"
            self.transport.write(head.encode() + b"content-length: %d\r\nconnection: close\r\n\r\n" % len(body) + body)
        self.transport.close()


def protocol(limit: int) -> type[BoundedProtocol]:
    """The protocol of a service that takes so many connections at once, or as many as it may have files open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = limit + RESERVE + OTHER_FILES
    if soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    class Protocol(BoundedProtocol):
        most = max(1, min(limit, soft - RESERVE - OTHER_FILES))
        waiting = {}

    return Protocol


def _too_long() -> Refused:
    fields = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
    return Refused(fields, f"Request line and header fields may have {HEAD_BYTES} bytes together.")


def _health_alone(app: ASGIApp) -> ASGIApp:
    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] in HEALTH:
            await app(scope, receive, send)
        else:
            busy = Busy("All connections are at work.", retry_after=5, hint="Try again later.")
            await response_for(scope["path"], busy)(scope, receive, send)

    return answer

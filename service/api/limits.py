"""Bodies over the limit are refused before any parser sees them; repeated requests are answered once."""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.errors import response_for
from service.errors import Conflict, InvalidRequest, TooLarge, Unprocessable
from service.settings import Settings

MULTIPART_SLACK = 64 * 1024
"""Bytes of an upload's body besides the file: boundaries, part headers, form fields."""


class BodyLimitMiddleware:
    """Refuses a body by its declared length, or, undeclared, as soon as it has grown too long."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self.app = app
        self.upload_bytes = int(settings.max_upload_mb * 2**20) + MULTIPART_SLACK
        self.body_bytes = int(settings.max_body_mb * 2**20)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        is_upload = scope["path"] == "/v1/documents" and scope["method"] == "POST"
        limit = self.upload_bytes if is_upload else self.body_bytes
        refused = TooLarge(
            f"The body is over the limit of {limit / 2**20:.1f} MiB.",
            hint=f"The operator sets it with FOLIO_MAX_{'UPLOAD' if is_upload else 'BODY'}_MB.",
        )
        declared = Headers(scope=scope).get("content-length", "0")
        if declared.isdigit() and int(declared) > limit:
            await response_for(scope["path"], refused)(scope, receive, send)
            return
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > limit:  # the one exception that the framework's body parsers let through
                raise HTTPException(TooLarge.status, refused.detail)
            return message

        await self.app(scope, counted, send)


@dataclass
class _Kept:
    fingerprint: str
    at: float = field(default_factory=time.monotonic)
    response: tuple[int, dict[str, Any]] | None = None


class Idempotency:
    """Answers to requests with an Idempotency-Key, kept for a day.

    A repeated key gets the first answer again; 409 while the first is in flight; 422 when the request differs.
    """

    LIFETIME_S = 24 * 3600
    CAPACITY = 10_000

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[str, str], _Kept] = OrderedDict()

    def begin(self, owner: str, key: str, *content: bytes) -> tuple[int, dict[str, Any]] | None:
        """The earlier answer, or None: go ahead within `attempt`."""
        if not 1 <= len(key) <= 255 or not key.isprintable():
            raise InvalidRequest(
                "An Idempotency-Key has 1 to 255 printable characters.", param="Idempotency-Key"
            )
        fingerprint = hashlib.sha256(b"\0".join(content)).hexdigest()
        self._forget()
        kept = self._kept.get((owner, key))
        if kept is None:
            self._kept[owner, key] = _Kept(fingerprint)
            return None
        if kept.fingerprint != fingerprint:
            raise Unprocessable(
                "This Idempotency-Key came with another request before.", param="Idempotency-Key"
            )
        if kept.response is None:
            raise Conflict("A request with this Idempotency-Key is in flight.", param="Idempotency-Key")
        return kept.response

    @contextmanager
    def attempt(self, owner: str, key: str) -> Iterator[Callable[[int, dict[str, Any]], None]]:
        """Around the work: call what it gives with status and body to keep them; a failure is not kept."""
        try:
            yield lambda status, body: setattr(self._kept[owner, key], "response", (status, body))
        finally:
            kept = self._kept.get((owner, key))
            if kept is not None and kept.response is None:
                del self._kept[owner, key]

    def _forget(self) -> None:
        oldest = time.monotonic() - self.LIFETIME_S
        while self._kept:
            key, kept = next(iter(self._kept.items()))
            if kept.at > oldest and len(self._kept) < self.CAPACITY:
                return
            del self._kept[key]

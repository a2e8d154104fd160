"""Bodies over a limit are refused before any parser sees them.

JSON is read in the event loop, which nothing interrupts: what it takes is bounded by its values rather than by its
bytes, and large bodies are handed over one at a time, with a pause in which everybody else is served. A large upload
waits on the disk for its owner's turn to be held in memory.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.errors import response_for
from service.errors import TooLarge
from service.settings import Settings
from service.turns import Turns

MULTIPART_SLACK = 64 * 1024
"""Bytes of an upload's body besides the file: boundaries, part headers, form fields."""
MAX_VALUES = 1_000_000
"""Values of a JSON body, or commas and opening brackets in its texts: more than any window has tokens."""
LARGE_BYTES = 256 * 1024
PAUSE_S = 0.05
"""Between two large bodies."""
LARGE_UPLOAD_BYTES = 8 << 20


class BodyLimitMiddleware:
    """Refuses a body by its declared length, or, undeclared, as soon as it has grown too long or too fine."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self.app = app
        self.upload_bytes = int(settings.max_upload_mb * 2**20) + MULTIPART_SLACK
        self.body_bytes = int(settings.max_body_mb * 2**20)
        self._turn = asyncio.Lock()
        self._uploads = Turns()

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
        received = values = 0
        async with AsyncExitStack() as held:

            async def counted() -> Message:
                nonlocal received, values
                message = await receive()
                part, more = message.get("body", b""), message.get("more_body", False)
                received += len(part)
                if received > limit:  # the one exception that the framework's body parsers let through
                    raise HTTPException(TooLarge.status, refused.detail)
                if is_upload:
                    if part and not more and received > LARGE_UPLOAD_BYTES:
                        await held.enter_async_context(self._uploads.of(scope["state"]["principal"].owner))
                    return message
                values += sum(part.count(sign) for sign in b",[{")
                if values > MAX_VALUES:
                    raise HTTPException(TooLarge.status, f"The body holds more than {MAX_VALUES:,} values.")
                if part and not more and received > LARGE_BYTES:
                    async with self._turn:
                        await asyncio.sleep(PAUSE_S)
                return message

            await self.app(scope, counted, send)

"""Who is asking: API keys, scopes, rates. Everything is closed but what is named open."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection
from typing import Annotated, Any

from fastapi import Depends, Request
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from service.api.errors import response_for
from service.errors import Busy, FolioError, Forbidden, Unauthorized, Unavailable
from service.keys import KeyStore, Principal

OPEN = {"/", "/healthz", "/readyz", "/docs", "/docs.css", "/openapi.json"}
"""Paths that need no key: they show nothing of anybody's."""


class TokenBucket:
    """Admits `per_minute` requests a minute, and as many at once after a quiet minute."""

    def __init__(self, per_minute: float) -> None:
        self.capacity = per_minute
        self.tokens = per_minute
        self.filled = time.monotonic()

    def take(self) -> float:
        """0.0 when admitted, else the seconds until the next request would be."""
        now = time.monotonic()
        self.tokens = min(self.capacity, self.tokens + (now - self.filled) * self.capacity / 60)
        self.filled = now
        if self.tokens >= 1:
            self.tokens -= 1
            return 0.0
        return (1 - self.tokens) * 60 / self.capacity


class AuthMiddleware:
    """Finds the principal of a request and holds it to its limits."""

    def __init__(
        self, app: ASGIApp, keys: Callable[[], KeyStore | None], open_paths: Collection[str]
    ) -> None:
        self.app = app
        self.keys = keys
        self.open_paths = OPEN | set(open_paths)
        self._buckets: dict[str, TokenBucket] = {}
        self._active: dict[str, int] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in self.open_paths:
            await self.app(scope, receive, send)
            return
        try:
            principal = await self._principal(Headers(scope=scope))
            self._admit(principal)
        except FolioError as error:
            await response_for(scope["path"], error)(scope, receive, send)
            return
        scope.setdefault("state", {})["principal"] = principal
        slot = principal.key_id or ""
        self._active[slot] = self._active.get(slot, 0) + 1
        try:
            await self.app(scope, receive, send)
        finally:
            self._active[slot] -= 1

    async def _principal(self, headers: Headers) -> Principal:
        keys = self.keys()
        if keys is None:
            raise Unavailable("The service is still starting.")
        if not await asyncio.to_thread(keys.in_use):
            return Principal()
        scheme, _, secret = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not secret:
            raise Unauthorized("This service needs an API key.", hint="Send 'Authorization: Bearer KEY'.")
        principal = await asyncio.to_thread(keys.principal, secret.strip())
        if principal is None:
            raise Unauthorized("This API key is unknown, revoked or expired.")
        return principal

    def _admit(self, principal: Principal) -> None:
        """Raise Busy when the key's rate or concurrency is used up."""
        limits, slot = principal.limits, principal.key_id or ""
        if "concurrency" in limits and self._active.get(slot, 0) >= limits["concurrency"]:
            raise Busy(f"This key has {self._active[slot]} requests under way, which is its limit.")
        if "rate_per_minute" in limits:
            bucket = self._buckets.get(slot)
            if bucket is None or bucket.capacity != limits["rate_per_minute"]:
                bucket = self._buckets[slot] = TokenBucket(limits["rate_per_minute"])
            wait = bucket.take()
            if wait:
                raise Busy(f"This key may send {bucket.capacity:.0f} requests a minute.", retry_after=wait)


def require(scope: str) -> Any:
    """A dependency that gives the principal and refuses one without `scope`."""

    def dependency(request: Request) -> Principal:
        principal: Principal = request.state.principal
        if not principal.may(scope):
            raise Forbidden(f"This key has no scope {scope!r}.")
        return principal

    return Depends(dependency)


Reader = Annotated[Principal, require("read")]
Writer = Annotated[Principal, require("write")]

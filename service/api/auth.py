"""Who is asking: API keys, scopes, rates. Everything is closed but what is named open."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Request
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from service.accounts.keys import KeyStore, Principal
from service.accounts.rates import RateLimiter
from service.api.errors import response_for
from service.errors import Busy, FolioError, Forbidden, Unauthorized, Unavailable
from service.owner import in_the_name_of

T = TypeVar("T")

OPEN = {"/", "/healthz", "/readyz", "/health", "/ping", "/version", "/docs", "/docs.css", "/openapi.json"}
"""Paths that need no key: they show nothing of anybody's."""
THREADS = 8
"""that look at keys alone: whatever else holds the service's threads, everybody is let in"""


class AuthMiddleware:
    """Finds the principal of a request and holds it to its limits."""

    def __init__(self, app: ASGIApp, keys: Callable[[], KeyStore | None], open_paths: Collection[str]) -> None:
        self.app = app
        self.keys = keys
        self.open_paths = OPEN | set(open_paths)
        self._rates: RateLimiter | None = None
        self._active: dict[str, int] = {}
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="folio-keys")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in self.open_paths:
            await self.app(scope, receive, send)
            return
        try:
            keys = self.keys()
            if keys is None:
                raise Unavailable("The service is still starting.")
            principal = await self._principal(keys, Headers(scope=scope))
            await self._admit(principal, keys)
        except FolioError as error:
            await response_for(scope["path"], error)(scope, receive, send)
            return
        scope.setdefault("state", {})["principal"] = principal
        slot = principal.key_id or ""
        self._active[slot] = self._active.get(slot, 0) + 1
        try:
            with in_the_name_of(principal.owner):
                await self.app(scope, receive, send)
        finally:
            self._active[slot] -= 1

    async def _admit(self, principal: Principal, keys: KeyStore) -> None:
        """Raise Busy when the key's rate or concurrency is used up."""
        limits, slot = principal.limits, principal.key_id or ""
        if "rate_per_minute" in limits:
            per_minute = limits["rate_per_minute"]
            if self._rates is None:
                self._rates = RateLimiter(keys.database)
            wait = self._rates.spend(slot)
            if wait is None:
                wait = await self._looked(self._rates.take, slot, per_minute)
            if wait:
                raise Busy(f"This key may send {per_minute:.0f} requests a minute.", retry_after=wait)
        # last, so that nothing is awaited before the request is counted
        if "concurrency" in limits and self._active.get(slot, 0) >= limits["concurrency"]:
            raise Busy(f"This key has {self._active[slot]} requests under way, which is its limit.")

    async def _principal(self, keys: KeyStore, headers: Headers) -> Principal:
        """Whom the key of a request stands for. Raises Unauthorized."""
        needed = keys.remembered_in_use()
        if needed is None:
            needed = await self._looked(keys.in_use)
        if not needed:
            return Principal()
        scheme, _, secret = headers.get("authorization", "").partition(" ")
        secret = secret if scheme.lower() == "bearer" else headers.get("x-api-key", "")  # as Anthropic's clients do
        if not secret:
            raise Unauthorized("This service needs an API key.", hint="Send 'Authorization: Bearer KEY'.")
        principal = await self._looked(keys.principal, secret.strip())
        if principal is None:
            raise Unauthorized("This API key is unknown, revoked or expired.")
        return principal

    async def _looked(self, look: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, look, *arguments)


def require(scope: str) -> Any:
    """A dependency that gives the principal and refuses one without `scope`."""

    async def dependency(request: Request) -> Principal:  # a plain function would be run in another thread
        principal: Principal = request.state.principal
        if not principal.may(scope):
            raise Forbidden(f"This key has no scope {scope!r}.")
        return principal

    return Depends(dependency)


Reader = Annotated[Principal, require("read")]
Writer = Annotated[Principal, require("write")]
Operator = Annotated[Principal, require("metrics")]

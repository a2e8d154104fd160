"""What every response carries and every request must not: browser rules.

The page needs no other host and no inline script, so the content policy forbids both. A service without keys
trusts whoever reaches it on loopback, so it answers only to loopback names (a foreign name that resolves to
127.0.0.1 is refused) and refuses what a page of another site sends.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.errors import response_for
from service.errors import FolioError, Forbidden, InvalidRequest
from service.settings import LOOPBACK, Settings

POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; style-src 'self'; script-src 'self'; object-src 'none'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
DOCS_POLICY = POLICY + "; connect-src 'self'"
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
}


class SecurityMiddleware:
    """Adds the headers; refuses foreign hosts and foreign origins."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self.app = app
        self.settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        refusal = self._refusal(Headers(scope=scope), scope["method"])
        if refusal is not None:
            await response_for(scope["path"], refusal)(scope, receive, send_with_headers)
            return
        await self.app(scope, receive, send_with_headers)

    def _refusal(self, headers: Headers, method: str) -> FolioError | None:
        host = headers.get("host", "")
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return InvalidRequest(f"The Host {host[:100]!r} is no name and no address.")
        if self.settings.loopback and name not in (*LOOPBACK, self.settings.host):
            return Forbidden(f"This service answers to loopback names only, not to {name[:100]!r}.")
        origin = headers.get("origin")
        harmless = method in ("GET", "HEAD", "OPTIONS") or origin in self.settings.origins
        if origin and not harmless and _place(origin) != host:
            return Forbidden(
                "This service takes no requests from pages of other sites than those in FOLIO_CORS_ORIGINS."
            )
        return None


def _place(origin: str) -> str | None:
    """Host and port of an origin; None of what is none."""
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return None

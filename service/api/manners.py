"""What clients expect of every response: an id, HEAD wherever there is GET, and word of what was not understood."""

from __future__ import annotations

import re
import secrets
from collections.abc import Collection

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.errors import response_to

log = structlog.get_logger(__name__)

REQUEST_ID = "X-Request-Id"
IGNORED = "X-Folio-Ignored"
"""Names of the fields of a body that Folio does not know, and that changed nothing."""
_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_NAME = re.compile(r"[^A-Za-z0-9_.\[\]-]")
_MOST_SHOWN = 20
_MOST_LOGGED = 1000
_logged: set[str] = set()


class MannersMiddleware:
    """Gives every response its request's id, the client's own where it sent one; answers HEAD as GET; and has the last
    word on an exception."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = Headers(scope=scope).get(REQUEST_ID, "")
        request_id = given if _ID.fullmatch(given) else f"req_{secrets.token_hex(12)}"
        bodiless = scope["method"] == "HEAD"
        if bodiless:
            scope = {**scope, "method": "GET"}
        state = scope.setdefault("state", {})
        started = False

        async def mannered(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                headers = MutableHeaders(scope=message)
                headers[REQUEST_ID] = request_id
                if state.get("ignored"):
                    headers[IGNORED] = ", ".join(state["ignored"])
            elif bodiless:
                message = {**message, "body": b""}
            await send(message)

        with structlog.contextvars.bound_contextvars(request_id=request_id):
            try:
                await self.app(scope, receive, mannered)
            except Exception as error:
                if started:
                    raise
                await response_to(scope["path"], error)(scope, receive, mannered)


def note_ignored(scope: Scope, names: Collection[str]) -> None:
    """Say in the response which fields changed nothing, and in the log, once for each name."""
    shown = [_NAME.sub("?", name)[:100] for name in sorted(names)[:_MOST_SHOWN]]
    if not shown:
        return
    scope.setdefault("state", {})["ignored"] = shown
    fresh = [name for name in shown if name not in _logged]
    if fresh and len(_logged) < _MOST_LOGGED:
        _logged.update(fresh)
        log.warning("fields that Folio does not know were ignored", path=scope["path"], fields=fresh)

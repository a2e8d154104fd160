"""The server: the official package's, on stdio or as an ASGI application."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from importlib.metadata import version
from typing import Any

import structlog
from mcp.server import MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.server.transport_security import TransportSecuritySettings
from mcp.types import ToolAnnotations
from starlette.types import Receive, Scope, Send

from service.errors import outward
from service.mcp.tools import CALLER, LibraryTools
from service.runtime import Runtime

HOSTS_CHECKED = TransportSecuritySettings(enable_dns_rebinding_protection=False)
"""The service has looked at them before (`service.api.security`)."""

log = structlog.get_logger(__name__)

INSTRUCTIONS = (
    "The user's own documents. Search them or ask about them rather than answer from memory; a citation names the "
    "document and the characters of its text, which read_passage shows."
)


def make_server(runtime: Runtime) -> MCPServer[Any]:
    """A server over the parts of a runtime that has been started."""
    server: MCPServer[Any] = MCPServer(
        "folio", title="Folio", version=version("folio-serve"), instructions=INSTRUCTIONS, log_level="WARNING"
    )
    tools = LibraryTools(runtime)
    for tool in (tools.search, tools.ask, tools.read_passage, tools.list_documents):
        reads = ToolAnnotations(read_only_hint=True, open_world_hint=False)
        server.add_tool(_told(tool), annotations=reads, structured_output=True)
    return server


class Endpoint:
    """The ASGI application at ``/mcp``: one request, one session, under the key that the service has checked."""

    def __init__(self, runtime: Runtime) -> None:
        self._server = make_server(runtime)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        CALLER.set(scope["state"]["principal"])
        app = self._server.streamable_http_app(
            stateless_http=True, json_response=True, transport_security=HOSTS_CHECKED
        )
        async with app.router.lifespan_context(app):
            await app(scope, receive, send)


def _told(tool: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """The same tool, whose refusals the client reads; what nobody foresaw stays in the log."""

    @functools.wraps(tool)
    async def told(*args: Any, **kwargs: Any) -> Any:
        try:
            return await tool(*args, **kwargs)
        except Exception as error:
            known = outward(error)
            if known is None:
                log.exception("a tool failed", tool=tool.__name__)
                raise ToolError("Something went wrong here; the log says what.") from None
            raise ToolError(known.detail) from error

    return told

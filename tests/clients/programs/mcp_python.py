"""The official MCP client; run by tests/clients."""

import asyncio
import os
from typing import Any

import httpx2
from mcp import Client
from mcp.client.streamable_http import streamable_http_client


def tools() -> dict[str, Any]:
    """The tools over HTTP under the service's key."""
    return asyncio.run(_tools())


async def _tools() -> dict[str, Any]:
    headers = {"Authorization": f"Bearer {os.environ['SERVICE_KEY']}"}
    url = f"{os.environ['SERVICE_URL']}/mcp"
    async with (
        httpx2.AsyncClient(headers=headers, timeout=300) as http,
        Client(streamable_http_client(url, http_client=http)) as client,
    ):
        names = sorted(tool.name for tool in (await client.list_tools()).tools)
        assert names == ["ask", "list_documents", "read_passage", "search"]
        listed = await client.call_tool("list_documents", {})
        found = await client.call_tool("search", {"query": "bridge"})
        assert not listed.is_error
        assert not found.is_error
        return {"tools": names}

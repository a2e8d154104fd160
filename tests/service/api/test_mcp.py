"""The library over the Model Context Protocol, through the official client."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import httpx2
import pytest

pytest.importorskip("mcp")
from mcp import Client, StdioServerParameters
from mcp.client.stdio import stdio_client
from mcp.client.streamable_http import streamable_http_client

BOOK = b"The bridge at Hampton was built by Ada Miller in 1862. It has seven arches of grey stone.\n"


@pytest.fixture(scope="module")
def library(start_service: Callable[..., Any], make_scripted: Any) -> Any:
    service = start_service(engine=make_scripted())
    service.document = service.ingest("bridge.txt", BOOK)["id"]
    return service


def told(service: Any, calls: list[tuple[str, dict[str, Any]]], key: str | None = None) -> list[Any]:
    """The results of calls, one after another in a session of their own."""

    async def run() -> list[Any]:
        async with AsyncExitStack() as stack:
            headers = {"Authorization": f"Bearer {key}"} if key else {}
            http = await stack.enter_async_context(httpx2.AsyncClient(headers=headers, timeout=60))
            transport = streamable_http_client(f"{service.url}/mcp", http_client=http)
            client = await stack.enter_async_context(Client(transport))
            return [await client.call_tool(name, arguments) for name, arguments in calls]

    return asyncio.run(run())


def test_the_tools_are_described(library: Any) -> None:
    async def names() -> dict[str, Any]:
        async with Client(f"{library.url}/mcp") as client:
            return {tool.name: tool for tool in (await client.list_tools()).tools}

    tools = asyncio.run(names())
    assert set(tools) == {"search", "ask", "read_passage", "list_documents"}
    assert tools["ask"].input_schema["required"] == ["question"]
    assert all(tool.annotations.read_only_hint for tool in tools.values())


def test_search_ask_read_and_list(library: Any) -> None:
    found, answer, listed = (
        result.structured_content
        for result in told(
            library,
            [
                ("search", {"query": "Who built the bridge?"}),
                ("ask", {"question": "Who built the bridge?", "mode": "retrieval"}),
                ("list_documents", {}),
            ],
        )
    )
    assert found["passages"][0]["document"] == library.document
    assert listed["documents"][0]["name"] == "bridge.txt"
    assert not listed["more"]
    (citation, *_) = answer["citations"]
    assert citation["verified"]
    where = {"document": citation["document"], "start": citation["start"], "end": citation["end"]}
    (read,) = told(library, [("read_passage", where)])
    assert read.structured_content["text"] == citation["cited_text"]
    (all_of_it,) = told(library, [("read_passage", {"document": library.document})])
    assert all_of_it.structured_content["text"] == BOOK.decode()


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("read_passage", {"document": "nosuch"}, "nosuch"),
        ("ask", {"question": "Who?", "documents": ["nosuch"]}, "nosuch"),
        ("ask", {"question": "Who?", "documents": ["a/b"]}, "documents"),
        ("search", {"query": ""}, "query"),
        ("search", {"query": "x", "limit": 10**6}, "limit"),
        ("nosuch", {}, "nosuch"),
    ],
)
def test_what_is_refused_is_named(library: Any, name: str, arguments: dict[str, Any], said: str) -> None:
    (result,) = told(library, [(name, arguments)])
    assert result.is_error
    assert said in result.content[0].text


def test_keys_are_the_services_and_owners_are_apart(start_service: Callable[..., Any], make_scripted: Any) -> None:
    service = start_service(engine=make_scripted())
    ada, bob = (service.runtime.keys.create(owner)[1] for owner in ("ada", "bob"))
    document = service.ingest("bridge.txt", BOOK, Authorization=f"Bearer {ada}")["id"]
    (hers,) = told(service, [("list_documents", {})], ada)
    assert [one["document"] for one in hers.structured_content["documents"]] == [document]
    (his, read) = told(service, [("list_documents", {}), ("read_passage", {"document": document})], bob)
    assert his.structured_content["documents"] == []
    assert read.is_error
    answer: httpx.Response = service.client.post("/mcp", json={"jsonrpc": "2.0", "id": 1, "method": "tools/list"})
    assert answer.status_code == 401


def test_the_command_speaks_on_stdio(home: Path, tiny_model: Path) -> None:
    environment = {**os.environ, "FOLIO_HOME": str(home), "FOLIO_MODEL": str(tiny_model)}
    command = StdioServerParameters(command=sys.executable, args=["-m", "service.cli", "mcp"], env=environment)

    async def run() -> list[Any]:
        async with Client(stdio_client(command)) as client:
            listed = await client.call_tool("list_documents", {})
            asked = {"question": "Who built the bridge?", "mode": "retrieval"}
            return [listed, await client.call_tool("ask", asked)]

    listed, answer = asyncio.run(run())
    assert {one["name"] for one in listed.structured_content["documents"]} == {"bridge.txt", "trees.md"}
    assert isinstance(answer.structured_content["answer"], str)

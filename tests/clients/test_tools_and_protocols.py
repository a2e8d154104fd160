"""Clients in Python: tools, the Responses API, Anthropic's messages, the Model Context Protocol."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

OPENAI = "openai-python"
ANTHROPIC = "Anthropic (anthropic)"
LANGCHAIN = "LangChain (langchain-openai)"


@pytest.mark.parametrize(
    "part",
    [
        pytest.param("tools", marks=pytest.mark.clients(OPENAI, "tools")),
        pytest.param("responses", marks=pytest.mark.clients(OPENAI, "responses")),
    ],
)
def test_openai(client_env: Callable[..., Any], service: Any, part: str) -> None:
    assert client_env("openai", client=OPENAI).program("openai_tools.py", part, service)


@pytest.mark.parametrize(
    "part",
    [
        pytest.param("text", marks=pytest.mark.clients(ANTHROPIC, "text and stream, count_tokens")),
        pytest.param("tools", marks=pytest.mark.clients(ANTHROPIC, "tools")),
    ],
)
def test_anthropic(client_env: Callable[..., Any], service: Any, part: str) -> None:
    assert client_env("anthropic", client=ANTHROPIC).program("anthropic_python.py", part, service)


@pytest.mark.clients(ANTHROPIC, "documents with citations")
def test_anthropic_cites(client_env: Callable[..., Any], start: Callable[..., Any]) -> None:
    """By the embedded reader: what a small model writes need not be carried by the document."""
    assert client_env("anthropic", client=ANTHROPIC).program(
        "anthropic_python.py", "citations", start(model="embedded")
    )


@pytest.mark.parametrize(
    "part",
    [
        pytest.param("bind_tools", marks=pytest.mark.clients(LANGCHAIN, "bind_tools")),
        pytest.param("agent", marks=pytest.mark.clients(LANGCHAIN, "create_agent")),
    ],
)
def test_langchain(client_env: Callable[..., Any], service: Any, part: str) -> None:
    environment = client_env("langchain-openai", "langchain", client=LANGCHAIN)
    assert environment.program("langchain_tools.py", part, service)


@pytest.mark.clients("instructor", "tools")
def test_instructor(client_env: Callable[..., Any], service: Any) -> None:
    assert client_env("instructor").program("instructor_client.py", "tools", service)


@pytest.mark.clients("MCP (mcp)", "tools over HTTP")
def test_mcp(client_env: Callable[..., Any], service: Any) -> None:
    assert client_env("mcp", client="MCP (mcp)").program("mcp_python.py", "tools", service)

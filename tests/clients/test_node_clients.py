"""Clients in JavaScript, where node and npm are."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any

import pytest

OPENAI = "openai-node"
VERCEL = "Vercel's AI SDK"

pytestmark = pytest.mark.skipif(not (shutil.which("node") and shutil.which("npm")), reason="needs node and npm")


@pytest.mark.parametrize(
    "part",
    [
        pytest.param("chat", marks=pytest.mark.clients(OPENAI, "chat")),
        pytest.param("stream", marks=pytest.mark.clients(OPENAI, "stream")),
        pytest.param("structured", marks=pytest.mark.clients(OPENAI, "structured output (parse)")),
        pytest.param("tools", marks=pytest.mark.clients(OPENAI, "tools")),
        pytest.param("responses", marks=pytest.mark.clients(OPENAI, "responses")),
    ],
)
def test_openai(node_env: Callable[..., Any], service: Any, part: str) -> None:
    assert node_env("openai", client=OPENAI).program("openai_node.mjs", part, service)


@pytest.mark.parametrize(
    "part",
    [
        pytest.param("generate", marks=pytest.mark.clients(VERCEL, "generateText")),
        pytest.param("stream", marks=pytest.mark.clients(VERCEL, "streamText")),
        pytest.param("tools", marks=pytest.mark.clients(VERCEL, "tools")),
    ],
)
def test_vercel(node_env: Callable[..., Any], service: Any, part: str) -> None:
    packages = ("ai", "@ai-sdk/openai-compatible", "zod")
    assert node_env(*packages, client=VERCEL).program("vercel_ai.mjs", part, service)

"""Clients in Python: chats, streams, structured output, log-probabilities, errors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

OPENAI = "openai-python"
LANGCHAIN = "LangChain (langchain-openai)"
LLAMAINDEX = "LlamaIndex (openai-like)"


@pytest.mark.parametrize(
    "part",
    [
        pytest.param("chat", marks=pytest.mark.clients(OPENAI, "chat")),
        pytest.param("stream", marks=pytest.mark.clients(OPENAI, "stream")),
        pytest.param("structured", marks=pytest.mark.clients(OPENAI, "structured output (parse)")),
        pytest.param("logprobs", marks=pytest.mark.clients(OPENAI, "log-probabilities, of prompts too")),
        pytest.param("errors", marks=pytest.mark.clients(OPENAI, "errors by class")),
    ],
)
def test_openai(client_env: Callable[..., Any], service: Any, part: str) -> None:
    assert client_env("openai", client=OPENAI).program("openai_python.py", part, service)


@pytest.mark.parametrize(
    "part",
    [
        pytest.param("conversation", marks=pytest.mark.clients(LANGCHAIN, "chat and stream")),
        pytest.param("documents", marks=pytest.mark.clients(LANGCHAIN, "answers from documents, a system message")),
        pytest.param("structured", marks=pytest.mark.clients(LANGCHAIN, "with_structured_output")),
        pytest.param("embeddings", marks=pytest.mark.clients(LANGCHAIN, "embeddings")),
    ],
)
def test_langchain(client_env: Callable[..., Any], service: Any, part: str) -> None:
    assert client_env("langchain-openai", client=LANGCHAIN).program("langchain_openai_chat.py", part, service)


@pytest.mark.parametrize(
    "part",
    [
        pytest.param("chat", marks=pytest.mark.clients(LLAMAINDEX, "chat and stream")),
        pytest.param("complete", marks=pytest.mark.clients(LLAMAINDEX, "completions")),
    ],
)
def test_llamaindex(client_env: Callable[..., Any], service: Any, part: str) -> None:
    environment = client_env("llama-index-llms-openai-like", client=LLAMAINDEX)
    assert environment.program("llamaindex_openai_like.py", part, service)


@pytest.mark.clients("instructor", "JSON schema")
def test_instructor(client_env: Callable[..., Any], service: Any) -> None:
    assert client_env("instructor").program("instructor_client.py", "json_schema", service)


@pytest.mark.parametrize(
    "part",
    [
        pytest.param("completion", marks=pytest.mark.clients("litellm", "chat and stream")),
        pytest.param("context_fallback", marks=pytest.mark.clients("litellm", "context fallback")),
    ],
)
def test_litellm(client_env: Callable[..., Any], service: Any, part: str) -> None:
    assert client_env("litellm").program("litellm_router.py", part, service)

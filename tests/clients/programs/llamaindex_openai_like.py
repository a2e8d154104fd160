"""LlamaIndex's client of services like OpenAI's; run by tests/clients."""

import os
from typing import Any

from llama_index.core.llms import ChatMessage
from llama_index.llms.openai_like import OpenAILike

llm = OpenAILike(
    model=os.environ["SERVICE_MODEL"],
    api_base=os.environ["SERVICE_BASE"],
    api_key=os.environ["SERVICE_KEY"],
    is_chat_model=True,
    context_window=4096,
    max_tokens=30,
    temperature=0,
)


def chat() -> dict[str, Any]:
    """Whole and streamed."""
    turns = [ChatMessage(role="system", content="Be brief."), ChatMessage(role="user", content="Say hello.")]
    whole = llm.chat(turns)
    assert whole.message.content
    streamed = [part.delta or "" for part in llm.stream_chat([*turns, whole.message, ChatMessage(content="Again.")])]
    assert "".join(streamed)
    return {"said": whole.message.content}


def complete() -> dict[str, Any]:
    """Text behind text."""
    plain = llm.model_copy(update={"is_chat_model": False})
    assert plain.complete("The sky is").text
    return {"streamed": "".join(part.delta or "" for part in plain.stream_complete("The sky is"))}

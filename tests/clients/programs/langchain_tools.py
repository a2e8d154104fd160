"""LangChain's tools; run by tests/clients."""

import os
from typing import Any

from langchain_core.tools import tool
from langchain_openai import ChatOpenAI

KEY: Any = os.environ["SERVICE_KEY"]
chat = ChatOpenAI(
    model=os.environ["SERVICE_MODEL"], base_url=os.environ["SERVICE_BASE"], api_key=KEY, temperature=0, max_tokens=120
)


@tool
def get_weather(city: str) -> str:
    """The weather of a city."""
    return f"It is sunny in {city}."


def bind_tools() -> dict[str, Any]:
    """A call by a tool that is bound, whole and streamed."""
    bound = chat.bind_tools([get_weather], tool_choice="required")
    message: Any = bound.invoke("What is the weather in Lund?")
    assert message.tool_calls[0]["name"] == "get_weather"
    streamed: Any = None
    for chunk in bound.stream("What is the weather in Lund?"):
        streamed = chunk if streamed is None else streamed + chunk
    assert streamed.tool_calls[0]["args"] == message.tool_calls[0]["args"]
    return {"calls": message.tool_calls}


def agent() -> dict[str, Any]:
    """`create_agent` to its end; whether a small model calls is its own affair."""
    from langchain.agents import create_agent

    made = create_agent(chat, [get_weather])
    said = made.invoke({"messages": [("user", "What is the weather in Lund?")]}, {"recursion_limit": 8})
    return {"turns": [message.type for message in said["messages"]]}

"""Anthropic's client; run by tests/clients."""

import os
from typing import Any

import anthropic

client = anthropic.Anthropic(
    base_url=os.environ["SERVICE_URL"], api_key=os.environ["SERVICE_KEY"], max_retries=0, timeout=300
)
MODEL = os.environ["SERVICE_MODEL"]
BOOK = "The bridge at Hampton was built by Ada Miller in 1862. It has seven arches of grey stone."


def text() -> dict[str, Any]:
    """A message, and the same as a stream."""
    how: Any = {"model": MODEL, "max_tokens": 20, "system": "Be brief.", "extra_body": {"temperature": 0}}
    how["messages"] = [{"role": "user", "content": "Say hello."}]
    whole: Any = client.messages.create(**how)
    with client.messages.stream(**how) as stream:
        assert "".join(stream.text_stream) == whole.content[0].text
    counted = client.messages.count_tokens(model=MODEL, messages=how["messages"], system="Be brief.")
    usage = whole.usage
    assert counted.input_tokens == usage.input_tokens + usage.cache_read_input_tokens
    return {"text": whole.content[0].text}


def tools() -> dict[str, Any]:
    """A call, and an answer from its result."""
    schema = {"type": "object", "properties": {"city": {"enum": ["Lund", "Oslo"]}}, "required": ["city"]}
    how: Any = {"model": MODEL, "max_tokens": 100, "tools": [{"name": "get_weather", "input_schema": schema}]}
    asked: Any = [{"role": "user", "content": "What is the weather in Lund?"}]
    first: Any = client.messages.create(**how, messages=asked, tool_choice={"type": "any"})
    call = next(block for block in first.content if block.type == "tool_use")
    assert call.input["city"] in ("Lund", "Oslo")
    results = [
        {"type": "tool_result", "tool_use_id": block.id, "content": "sunny"}
        for block in first.content
        if block.type == "tool_use"
    ]
    turns = [*asked, {"role": "assistant", "content": first.content}, {"role": "user", "content": results}]
    second: Any = client.messages.create(**how, messages=turns, tool_choice={"type": "none"})
    assert second.stop_reason in ("end_turn", "max_tokens")
    return {"input": call.input}


def citations() -> dict[str, Any]:
    """A document in the request, cited by its characters."""
    source = {"type": "text", "media_type": "text/plain", "data": BOOK}
    document = {"type": "document", "source": source, "title": "Bridge", "citations": {"enabled": True}}
    asked: Any = [{"role": "user", "content": [document, {"type": "text", "text": "Who built the bridge at Hampton?"}]}]
    message: Any = client.messages.create(model=MODEL, max_tokens=60, messages=asked)
    found = [one for block in message.content for one in block.citations or ()]
    assert found, message
    assert all(BOOK[one.start_char_index : one.end_char_index] == one.cited_text for one in found)
    return {"text": "".join(block.text for block in message.content), "cited": found[0].cited_text}

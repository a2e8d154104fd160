"""Tools and the Responses API with the official Python client; run by tests/clients."""

import json
import os
from typing import Any

import openai

client = openai.OpenAI(
    base_url=os.environ["SERVICE_BASE"], api_key=os.environ["SERVICE_KEY"], max_retries=0, timeout=300
)
MODEL = os.environ["SERVICE_MODEL"]
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 40},
        "days": {"type": "integer", "minimum": 1, "maximum": 9},
    },
    "required": ["city", "days"],
    "additionalProperties": False,
}
TOOL: Any = {
    "type": "function",
    "function": {"name": "get_weather", "description": "A forecast.", "parameters": SCHEMA},
}
FLAT: Any = {
    "type": "function",
    "name": "get_weather",
    "description": "A forecast.",
    "parameters": SCHEMA,
    "strict": True,
}
ASKED: Any = [{"role": "user", "content": "What will the weather be in Lund over the next 2 days?"}]


def tools() -> dict[str, Any]:
    """A call, its result, and an answer; streamed the same."""
    how: Any = {"model": MODEL, "tools": [TOOL], "max_tokens": 200, "temperature": 0}
    choice = client.chat.completions.create(messages=ASKED, tool_choice="required", **how).choices[0]
    assert choice.finish_reason == "tool_calls"
    calls: Any = choice.message.tool_calls
    assert 1 <= json.loads(calls[0].function.arguments)["days"] <= 9
    with client.chat.completions.stream(messages=ASKED, tool_choice="required", **how) as stream:
        streamed: Any = stream.get_final_completion().choices[0].message.tool_calls
    assert [call.function.arguments for call in streamed] == [call.function.arguments for call in calls]
    results = [{"role": "tool", "tool_call_id": call.id, "content": "sunny"} for call in calls]
    answer = client.chat.completions.create(messages=[*ASKED, choice.message, *results], tool_choice="none", **how)
    assert answer.choices[0].message.content
    return {"arguments": calls[0].function.arguments, "answer": answer.choices[0].message.content}


def responses() -> dict[str, Any]:
    """Text, a stream, a call, and a conversation that goes on from what is stored."""
    first = client.responses.create(model=MODEL, input="Say hello.", max_output_tokens=20, temperature=0)
    with client.responses.stream(
        model=MODEL, input="Once more.", previous_response_id=first.id, temperature=0
    ) as stream:
        kinds = [event.type for event in stream]
        second = stream.get_final_response()
    assert kinds[0] == "response.created"
    assert first.usage is not None
    assert second.usage is not None
    assert second.usage.input_tokens > first.usage.input_tokens
    called = client.responses.create(
        model=MODEL, input=ASKED, tools=[FLAT], tool_choice="required", max_output_tokens=200, temperature=0
    )
    (call, *_) = (item for item in called.output if item.type == "function_call")
    assert 1 <= json.loads(call.arguments)["days"] <= 9
    client.responses.delete(second.id)
    return {"text": second.output_text, "arguments": call.arguments}

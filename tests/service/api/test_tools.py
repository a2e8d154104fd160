"""Tools on chat completions, through the official client."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import openai
import pytest

WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a place.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"enum": ["Lund", "Malmö"]},
                "days": {"type": "integer", "minimum": 1, "maximum": 9},
            },
            "required": ["city", "days"],
        },
    },
}
TIME: Any = {"type": "function", "function": {"name": "get_time"}}
ASKED: Any = [{"role": "user", "content": "How is the weather?"}]
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Lund", "days": 2}}\n</tool_call>'
TWO = CALL + '\n<tool_call>\n{"name": "get_time", "arguments": {}}\n</tool_call>'


def agent(prompt: str) -> str:
    """Calls two tools; says what they gave once they have."""
    if "<tool_response>" in prompt:
        return "It is grey at noon."
    return f"Let me look.\n{TWO}" if "get_weather" in prompt else "I cannot know."


@pytest.fixture(scope="module")
def scripted(start_service: Callable[..., Any], make_scripted: Any) -> openai.OpenAI:
    service = start_service(engine=make_scripted(agent))
    return openai.OpenAI(base_url=f"{service.url}/v1", api_key="none", max_retries=0)


def test_calls_come_beside_the_text(scripted: openai.OpenAI, model: str) -> None:
    choice = scripted.chat.completions.create(model=model, messages=ASKED, tools=[WEATHER, TIME]).choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content == "Let me look."
    calls: Any = choice.message.tool_calls
    assert [(call.function.name, json.loads(call.function.arguments)) for call in calls] == [
        ("get_weather", {"city": "Lund", "days": 2}),
        ("get_time", {}),
    ]
    assert len({call.id for call in calls}) == 2


def test_a_stream_gives_the_same(scripted: openai.OpenAI, model: str) -> None:
    with scripted.chat.completions.stream(model=model, messages=ASKED, tools=[WEATHER, TIME]) as stream:
        kinds = [event.type for event in stream]
        choice = stream.get_final_completion().choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content == "Let me look."
    assert [call.function.name for call in choice.message.tool_calls or []] == ["get_weather", "get_time"]
    assert json.loads(choice.message.tool_calls[0].function.arguments) == {"city": "Lund", "days": 2}  # type: ignore[index]
    assert kinds.count("tool_calls.function.arguments.done") == 2


def test_a_conversation_goes_on_behind_its_calls(scripted: openai.OpenAI, model: str) -> None:
    first = scripted.chat.completions.create(model=model, messages=ASKED, tools=[WEATHER, TIME]).choices[0].message
    results: Any = [
        {"role": "tool", "tool_call_id": call.id, "content": f"result {at}"}
        for at, call in enumerate(first.tool_calls or [])
    ]
    asked = [*ASKED, first.model_dump(exclude_unset=True), *results]
    answer = scripted.chat.completions.create(model=model, messages=asked, tools=[WEATHER, TIME]).choices[0]
    assert answer.finish_reason == "stop"
    assert answer.message.content == "It is grey at noon."
    assert answer.message.tool_calls is None


def test_none_calls_nothing_and_names_no_tools(scripted: openai.OpenAI, model: str) -> None:
    asked: Any = {"model": model, "messages": ASKED, "tools": [WEATHER]}
    assert scripted.chat.completions.create(**asked, tool_choice="none").choices[0].message.content == "I cannot know."
    assert scripted.chat.completions.create(**asked | {"tools": []}).choices[0].message.content == "I cannot know."


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "get_weather"}}])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_any_model_calls_when_it_must_and_by_the_schema(
    client: openai.OpenAI, model: str, choice: Any, seed: int
) -> None:
    """The weights are random: the constraint alone makes this a call."""
    answer = client.chat.completions.create(
        model=model,
        messages=ASKED,
        tools=[WEATHER],
        tool_choice=choice,
        parallel_tool_calls=False,
        temperature=1,
        seed=seed,
        max_tokens=200,
    ).choices[0]
    assert answer.finish_reason == "tool_calls"
    assert answer.message.content is None
    (call,) = answer.message.tool_calls or []
    arguments = json.loads(call.function.arguments)  # type: ignore[union-attr]
    assert arguments["city"] in ("Lund", "Malmö")
    assert 1 <= arguments["days"] <= 9


def test_allowed_tools_are_the_only_ones_called(client: openai.OpenAI, model: str) -> None:
    allowed = {"mode": "required", "tools": [{"type": "function", "function": {"name": "get_time"}}]}
    answer = client.chat.completions.create(
        model=model,
        messages=ASKED,
        tools=[WEATHER, TIME],
        tool_choice={"type": "allowed_tools", "allowed_tools": allowed},  # type: ignore[arg-type]
        max_tokens=100,
    ).choices[0]
    assert {call.function.name for call in answer.message.tool_calls or []} == {"get_time"}  # type: ignore[union-attr]


def assistant(*calls: str) -> Any:
    made = [{"id": one, "type": "function", "function": {"name": "get_time", "arguments": "{}"}} for one in calls]
    return {"role": "assistant", "content": None, "tool_calls": made}


def result(call: str) -> Any:
    return {"role": "tool", "tool_call_id": call, "content": "noon"}


def with_parameters(schema: Any) -> Any:
    return {"tools": [{"type": "function", "function": {"name": "evil", "parameters": schema}}]}


LOOP = {"type": "object", "properties": {"n": {"$ref": "#/$defs/n"}}, "required": ["n"]}
BAD: list[tuple[str, dict[str, Any], str | None, str]] = [
    ("a result without a call", {"messages": [*ASKED, result("c1")]}, "messages.1.tool_call_id", "c1"),
    (
        "another call's",
        {"messages": [*ASKED, assistant("c1"), result("c2")]},
        "messages.2.tool_call_id",
        "c2",
    ),
    ("a result twice", {"messages": [*ASKED, assistant("c1"), result("c1"), result("c1")]}, None, "c1"),
    ("a call without a result", {"messages": [*ASKED, assistant("c1", "c2"), result("c1"), *ASKED]}, None, "c2"),
    ("a result without an id", {"messages": [{"role": "tool", "content": "x"}]}, "messages.0", "tool_call_id"),
    ("a user's calls", {"messages": [{**assistant("c1"), "role": "user"}]}, "messages.0", "assistant"),
    (
        "arguments that are no JSON",
        {"messages": [*ASKED, {**assistant("c1"), "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{oops"}}]}]},
        "messages.1.tool_calls.0.function.arguments",
        "JSON",
    ),
    ("a choice of none", {"tools": [TIME], "tool_choice": {"type": "function", "function": {"name": "x"}}},
     "tool_choice", "'x'"),
    ("a choice without tools", {"tool_choice": "required"}, None, "tools"),
    ("two of one name", {"tools": [TIME, TIME]}, "tools", "get_time"),
    ("a name with a blank", {"tools": [{"type": "function", "function": {"name": "a b"}}]}, None, "name"),
    ("another kind", {"tools": [{"type": "web_search"}]}, None, "type"),
    ("with documents", {"tools": [TIME], "folio": {}}, None, "folio"),
    ("with another form", {"tools": [TIME], "structured_outputs": {"regex": "a"}}, None, "structured_outputs"),
    ("contradictory", with_parameters({"type": "object", "properties": {"a": {"type": "string", "enum": [5]}},
                                       "required": ["a"]}), "tools.0.function.parameters", "evil"),
    ("recursive without end", with_parameters({"$defs": {"n": LOOP}, **LOOP}), "tools.0.function.parameters", "evil"),
    ("huge", with_parameters({"type": "object", "properties": {f"p{i}": {} for i in range(30_000)}}),
     "tools.0.function.parameters", "evil"),
    ("no object", with_parameters({"type": "string"}), "tools.0.function.parameters", "evil"),
    ("too many", {"tools": [{"type": "function", "function": {"name": f"f{i}"}} for i in range(129)]}, "tools", "128"),
    ("an image", {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
     None, "text"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "change", "param", "said"), BAD, ids=[name for name, *_ in BAD])
def test_bad_tools_and_calls_are_named(
    service: Any, model: str, name: str, change: dict[str, Any], param: str | None, said: str
) -> None:
    answer = service.client.post("/v1/chat/completions", json={"model": model, "messages": ASKED, **change})
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert said in json.dumps(error)
    if param is not None:
        assert error["param"] == param


def test_a_model_without_a_chat_template_calls_nothing(start_service: Callable[..., Any], make_scripted: Any) -> None:
    engine = make_scripted(agent)
    engine.loaded.tokenizer = copy.deepcopy(engine.tokenizer)
    engine.loaded.tokenizer.chat_template = None
    service = start_service(engine=engine)
    body = {"model": service.runtime.model_name, "messages": ASKED, "tools": [TIME]}
    answer = service.client.post("/v1/chat/completions", json=body)
    assert answer.status_code == 400
    assert "chat template" in answer.json()["error"]["message"]

"""The Responses API, through the official client."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx
import openai
import pytest
from pydantic import BaseModel

from tests.service.api.test_tools import TWO, agent

WEATHER: Any = {
    "type": "function",
    "name": "get_weather",
    "parameters": {
        "type": "object",
        "properties": {"city": {"enum": ["Lund", "Malmö"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
        "required": ["city", "days"],
        "additionalProperties": False,
    },
    "strict": True,
}
TIME: Any = {"type": "function", "name": "get_time", "parameters": {"type": "object", "properties": {}}}


@pytest.fixture(scope="module")
def scripted_service(start_service: Callable[..., Any], make_scripted: Any) -> Any:
    return start_service(
        engine=make_scripted(lambda prompt: agent(prompt) if "get_weather" in prompt else echo(prompt))
    )


def echo(prompt: str) -> str:
    """How much of a conversation the prompt holds."""
    return f"{prompt.count('user')} asked, {prompt.count('assistant') - 1} answered. {'Be kind' in prompt}"


@pytest.fixture(scope="module")
def client(scripted_service: Any) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{scripted_service.url}/v1", api_key="none", max_retries=0)


def test_text(client: openai.OpenAI, model: str) -> None:
    response = client.responses.create(model=model, input="Hello", instructions="Be kind", metadata={"a": "b"})
    assert response.output_text == "1 asked, 0 answered. True"
    assert response.status == "completed"
    assert response.metadata == {"a": "b"}
    assert response.usage is not None
    assert response.usage.total_tokens == response.usage.input_tokens + response.usage.output_tokens > 0


def test_a_conversation_goes_on_from_a_response(client: openai.OpenAI, model: str) -> None:
    first = client.responses.create(model=model, input="One", instructions="Be kind")
    second = client.responses.create(model=model, input="Two", previous_response_id=first.id)
    third = client.responses.create(
        model=model, input=[{"role": "user", "content": "Three"}], previous_response_id=second.id
    )
    assert second.output_text == "2 asked, 1 answered. False"
    assert third.output_text == "3 asked, 2 answered. False"
    assert client.responses.retrieve(third.id).output_text == third.output_text
    listed = client.responses.input_items.list(third.id).data
    assert [item.content[0].text for item in listed] == ["Three"]  # type: ignore[union-attr]
    client.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError) as caught:
        client.responses.create(model=model, input="Four", previous_response_id=third.id)
    assert caught.value.body["param"] == "previous_response_id"  # type: ignore[index,call-overload]


def test_what_is_not_stored_is_not_there(client: openai.OpenAI, model: str) -> None:
    response = client.responses.create(model=model, input="One", store=False)
    with pytest.raises(openai.NotFoundError, match=response.id):
        client.responses.retrieve(response.id)
    with pytest.raises(openai.NotFoundError, match=response.id):
        client.responses.create(model=model, input="Two", previous_response_id=response.id)


def test_another_owners_response_is_not_there(start_service: Callable[..., Any], make_scripted: Any) -> None:
    service = start_service(engine=make_scripted(echo))
    secrets = [service.runtime.keys.create(owner)[1] for owner in ("ada", "bob")]
    ada, bob = (openai.OpenAI(base_url=f"{service.url}/v1", api_key=one, max_retries=0) for one in secrets)
    model = service.runtime.model_name
    response = ada.responses.create(model=model, input="Secret")
    assert ada.responses.retrieve(response.id).id == response.id
    for attempt in (
        lambda: bob.responses.retrieve(response.id),
        lambda: bob.responses.delete(response.id),
        lambda: bob.responses.input_items.list(response.id),
        lambda: bob.responses.create(model=model, input="Tell", previous_response_id=response.id),
    ):
        with pytest.raises(openai.NotFoundError):
            attempt()


def test_tools_and_their_results(client: openai.OpenAI, model: str) -> None:
    first = client.responses.create(model=model, input="Weather?", tools=[WEATHER, TIME])
    assert [item.type for item in first.output] == ["message", "function_call", "function_call"]
    calls: list[Any] = [item for item in first.output if item.type == "function_call"]
    assert json.loads(calls[0].arguments) == {"city": "Lund", "days": 2}
    results: Any = [{"type": "function_call_output", "call_id": call.call_id, "output": "grey"} for call in calls]
    stored = client.responses.create(model=model, input=results, tools=[WEATHER, TIME], previous_response_id=first.id)
    whole: Any = [{"role": "user", "content": "Weather?"}, *(i.model_dump(exclude_unset=True) for i in first.output)]
    sent = client.responses.create(model=model, input=[*whole, *results], tools=[WEATHER, TIME], store=False)
    assert stored.output_text == sent.output_text == "It is grey at noon."


def test_a_stream_has_the_official_events_in_their_order(client: openai.OpenAI, model: str) -> None:
    with client.responses.stream(model=model, input="Weather?", tools=[WEATHER, TIME]) as stream:
        events = list(stream)
        final = stream.get_final_response()
    kinds = [event.type for event in events]
    shape = [kind for at, kind in enumerate(kinds) if not kind.endswith("delta") or kinds[at - 1] != kind]
    call = ["response.output_item.added", "response.function_call_arguments.delta"]
    call += ["response.function_call_arguments.done", "response.output_item.done"]
    assert shape == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        *call,
        *call,
        "response.completed",
    ]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert [item.type for item in final.output] == ["message", "function_call", "function_call"]
    assert final.output_text == "Let me look."
    assert client.responses.retrieve(final.id).output[1].arguments == '{"city": "Lund", "days": 2}'  # type: ignore[union-attr]
    assert TWO


def test_a_cut_response_is_incomplete(client: openai.OpenAI, model: str) -> None:
    response = client.responses.create(model=model, input="Hello", max_output_tokens=3)
    assert response.status == "incomplete"
    assert response.incomplete_details is not None
    assert response.incomplete_details.reason == "max_output_tokens"
    assert response.output[0].status == "incomplete"  # type: ignore[union-attr]


class Length(BaseModel):
    pages: bool


def test_structured_output(service: Any) -> None:
    """Over random weights: the schema alone makes this an answer."""
    client = openai.OpenAI(base_url=f"{service.url}/v1", api_key="none", max_retries=0)
    model = service.runtime.model_name
    parsed = client.responses.parse(
        model=model, input="How long?", text_format=Length, max_output_tokens=100, top_logprobs=2,
        include=["message.output_text.logprobs"],
    )  # fmt: skip
    assert isinstance(parsed.output_parsed, Length)
    logprobs = parsed.output[0].content[0].logprobs  # type: ignore[union-attr]
    assert len(logprobs[0].top_logprobs) >= 2
    called = client.responses.create(
        model=model, input="x", tools=[WEATHER], max_output_tokens=200, parallel_tool_calls=False,
        tool_choice={"type": "function", "name": "get_weather"},
    )  # fmt: skip
    assert json.loads(called.output[0].arguments)["city"] in ("Lund", "Malmö")  # type: ignore[union-attr]


def test_documents_come_in_folio_and_citations_go_out(start_service: Callable[..., Any], make_scripted: Any) -> None:
    service = start_service(engine=make_scripted())
    document = service.ingest("bridge.txt", b"The bridge at Hampton was built by Ada Miller in 1862.\n")["id"]
    client = openai.OpenAI(base_url=f"{service.url}/v1", api_key="none", max_retries=0)
    asked: Any = {
        "model": service.runtime.model_name,
        "input": "Who built the bridge?",
        "extra_body": {"folio": {"documents": [document], "mode": "retrieval"}},
    }
    response = client.responses.create(**asked)
    part: Any = response.output[0].content[0]  # type: ignore[union-attr]
    assert part.annotations[0].type == "file_citation"
    assert part.annotations[0].file_id == document
    assert response.model_extra["folio"]["citations"][0]["verified"]  # type: ignore[index]
    kinds = [event.type for event in client.responses.create(**asked, stream=True)]
    assert "response.output_text.annotation.added" in kinds
    assert kinds[-1] == "response.completed"


BAD: list[tuple[dict[str, Any], int, str | None]] = [
    ({"input": []}, 400, "input"),
    ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, 400, None),
    ({"input": [{"type": "web_search_call", "id": "x"}]}, 400, "input.0"),
    ({"input": [{"type": "function_call_output", "call_id": "c9", "output": "x"}]}, 400, "input"),
    ({"input": "y" * 20_000}, 400, "input"),
    ({"background": True}, 400, "background"),
    ({"truncation": "auto"}, 400, "truncation"),
    ({"conversation": "c"}, 400, "conversation"),
    ({"previous_response_id": "resp_none"}, 404, "previous_response_id"),
    ({"tools": [{"type": "web_search"}]}, 400, None),
    ({"tools": [{"type": "function", "name": "f", "parameters": {"type": "array"}}]}, 400, "tools.0.parameters"),
    ({"tool_choice": "required"}, 400, None),
    ({"text": {"format": {"type": "json_schema", "name": "x"}}}, 400, None),
    ({"model": "other"}, 404, "model"),
    ({"temperature": 3}, 400, "temperature"),
    ({"metadata": {"a": "y" * 513}}, 400, "metadata.a"),
    ({"tools": [{"type": "function", "name": "f", "description": "y" * 2**20}], "tool_choice": "none"}, 400, "store"),
]


@pytest.mark.parametrize(("change", "status", "param"), BAD, ids=lambda value: str(value)[:40])
def test_bad_requests_name_the_parameter(
    scripted_service: Any, model: str, change: dict[str, Any], status: int, param: str | None
) -> None:
    answer: httpx.Response = scripted_service.client.post(
        "/v1/responses", json={"model": model, "input": "x", **change}
    )
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    if param is not None:
        assert error["param"] == param, error


def test_a_failure_in_the_midst_is_an_event(start_service: Callable[..., Any], make_scripted: Any) -> None:
    engine = make_scripted(lambda _: "x" * 400, 0.02)
    service = start_service(engine=engine)
    client = openai.OpenAI(base_url=f"{service.url}/v1", api_key="none", max_retries=0)
    seen = []
    for event in client.responses.create(model=service.runtime.model_name, input="x", stream=True):
        seen.append(event.type)
        if event.type == "response.output_text.delta":
            engine.failure = RuntimeError("secret path")
    assert seen[-1] == "response.failed"

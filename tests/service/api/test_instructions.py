"""The system's words beside documents: they reach the model on every route, or are refused by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anthropic
import openai
import pytest

BOOK = "The bridge at Hampton was built by Ada Miller in 1862. It has seven arches of grey stone.\n"
LOUD = "Answer in capital letters."
ASKED: Any = [{"role": "user", "content": "Who built the bridge?"}]


def obedient(prompt: str) -> str:
    """Speaks louder if the system's turn says so, and of the other instruction if it is there too."""
    told = prompt.partition("<|im_end|>")[0]
    assert told.startswith("<|im_start|>system\nYou answer questions about documents.")
    answer = "ADA MILLER." if LOUD in told else "Ada Miller."
    return answer + (" Yours, Folio." if "Sign it." in told else "")


@pytest.fixture(scope="module")
def service(start_service: Callable[..., Any], make_scripted: Any) -> Any:
    started = start_service(engine=make_scripted(obedient))
    started.document = started.ingest("bridge.txt", BOOK.encode())["id"]
    return started


@pytest.fixture
def uninstructed(service: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The same with a model that quotes, as the embedded reader."""
    monkeypatch.setattr(type(service.runtime.answerer.layout), "instructed", False)
    return service


def _chat(service: Any, *system: str, role: str = "system", **more: Any) -> Any:
    client = openai.OpenAI(base_url=f"{service.url}/v1", api_key="none", max_retries=0)
    told: Any = [{"role": role, "content": text} for text in system]
    folio = {"documents": [service.document], "mode": "long"}
    how: Any = {"model": service.runtime.model_name, "extra_body": {"folio": folio}, **more}
    return client.chat.completions.create(messages=[*told[:1], *ASKED[:-1], *told[1:], *ASKED[-1:]], **how)


def _response(service: Any, **more: Any) -> Any:
    client = openai.OpenAI(base_url=f"{service.url}/v1", api_key="none", max_retries=0)
    folio = {"documents": [service.document], "mode": "long"}
    return client.responses.create(model=service.runtime.model_name, extra_body={"folio": folio}, **more)


def _message(service: Any, **more: Any) -> Any:
    client = anthropic.Anthropic(base_url=service.url, api_key="none", max_retries=0)
    source = {"type": "text", "media_type": "text/plain", "data": BOOK}
    given = {"type": "document", "source": source, "citations": {"enabled": True}}
    messages: Any = [{"role": "user", "content": [given, {"type": "text", "text": "Who built the bridge?"}]}]
    asked = {"model": service.runtime.model_name, "messages": messages, **more}
    counted = client.messages.count_tokens(**asked).input_tokens
    reply = client.messages.create(max_tokens=40, **asked)
    assert reply.usage.input_tokens == counted
    return reply


def test_chats_heed_the_system(service: Any) -> None:
    assert _chat(service).choices[0].message.content == "Ada Miller."
    loud = _chat(service, LOUD).choices[0]
    assert loud.message.content == "ADA MILLER."
    assert loud.model_extra["folio"]["claims"], "claims are judged as ever"
    assert _chat(service, LOUD, role="developer").choices[0].message.content == "ADA MILLER."
    assert _chat(service, LOUD, "Sign it.").choices[0].message.content == "ADA MILLER. Yours, Folio."
    streamed = _chat(service, LOUD, stream=True)
    assert "".join(one.choices[0].delta.content or "" for one in streamed if one.choices) == "ADA MILLER."


def test_responses_heed_instructions_and_the_system(service: Any) -> None:
    assert _response(service, input=ASKED).output_text == "Ada Miller."
    assert _response(service, input=ASKED, instructions=LOUD).output_text == "ADA MILLER."
    told = [{"role": "system", "content": "Sign it."}, *ASKED]
    assert _response(service, input=told, instructions=LOUD).output_text == "ADA MILLER. Yours, Folio."


def test_messages_heed_the_system_over_documents_that_come_with_them(service: Any) -> None:
    texts = ["".join(one.text for one in _message(service, **how).content) for how in ({}, {"system": LOUD})]
    assert texts == ["Ada Miller.", "ADA MILLER."]


def test_answers_take_instructions(service: Any) -> None:
    asked = {"question": ASKED[0]["content"], "documents": [service.document], "instructions": LOUD}
    for mode in ("long", "retrieval"):
        answer = service.client.post("/v1/answer", json={**asked, "mode": mode, "refuse_below": 0})
        assert answer.json()["answer"] == "ADA MILLER."
    much = service.client.post("/v1/answer", json={**asked, "instructions": "x" * 20_001})
    assert (much.status_code, much.json()["errors"][0]["param"]) == (422, "instructions")


def test_a_model_that_follows_none_refuses_them_by_the_users_name(uninstructed: Any) -> None:
    refused: list[Any] = []
    for ask in (
        lambda: _chat(uninstructed, LOUD),
        lambda: _response(uninstructed, input=ASKED, instructions=LOUD),
        lambda: _response(uninstructed, input=[{"role": "system", "content": LOUD}, *ASKED]),
    ):
        with pytest.raises(openai.BadRequestError, match="follows no instructions") as caught:
            ask()
        refused.append(caught.value.param)
    assert refused == ["messages", "instructions", "input"]
    with pytest.raises(anthropic.BadRequestError, match="follows no instructions"):
        _message(uninstructed, system=LOUD)
    answer = uninstructed.client.post("/v1/answer", json={"question": "Who?", "instructions": LOUD})
    assert (answer.status_code, answer.json()["param"]) == (400, "instructions")
    assert _chat(uninstructed, " ").choices[0].message.content == "Ada Miller.", "nothing was said"


def test_the_embedded_reader_is_such_a_model() -> None:
    from service.reader.layout import ReaderLayout

    assert not ReaderLayout.instructed

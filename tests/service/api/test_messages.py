"""Anthropic's Messages interface, through the official client."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any

import anthropic
import httpx
import pytest

from tests.retrieval import make_files
from tests.service.api.test_tools import agent

WEATHER: Any = {
    "name": "get_weather",
    "description": "The weather of a place.",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"enum": ["Lund", "Malmö"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
        "required": ["city", "days"],
    },
}
TIME: Any = {"name": "get_time", "input_schema": {"type": "object", "properties": {}}}
ASKED: Any = [{"role": "user", "content": "How is the weather?"}]
BOOK = "The bridge at Hampton was built by Ada Miller in 1862. It has seven arches of grey stone."
FIRST = "The bridge at Hampton was built by Ada Miller in 1862."


def connect(service: Any, key: str = "none") -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=service.url, api_key=key, max_retries=0)


def echo(prompt: str) -> str:
    return f"{prompt.count('user')} asked. {'Be kind' in prompt}"


@pytest.fixture(scope="module")
def talking(start_service: Callable[..., Any], make_scripted: Any) -> Any:
    return start_service(engine=make_scripted(lambda p: agent(p) if "get_weather" in p else echo(p)))


@pytest.fixture(scope="module")
def quoting(start_service: Callable[..., Any], make_scripted: Any) -> Any:
    return start_service(engine=make_scripted())


@pytest.fixture(scope="module")
def model(talking: Any) -> str:
    return talking.runtime.model_name


def document(text: str = BOOK, **more: Any) -> Any:
    source = {"type": "text", "media_type": "text/plain", "data": text}
    return {"type": "document", "source": source, "title": "Bridge", "citations": {"enabled": True}, **more}


def asked(*blocks: Any) -> Any:
    return [{"role": "user", "content": [*blocks, {"type": "text", "text": "Who built the bridge?"}]}]


def test_text(talking: Any, model: str) -> None:
    message = connect(talking).messages.create(model=model, max_tokens=100, messages=ASKED[:1], system="Be kind")
    assert [block.type for block in message.content] == ["text"]
    assert message.content[0].text == "1 asked. True"  # type: ignore[union-attr]
    assert message.stop_reason == "end_turn"
    assert message.usage.input_tokens > 0
    assert message.usage.output_tokens > 0


def test_a_stream_has_the_official_events(talking: Any, model: str) -> None:
    with connect(talking).messages.stream(model=model, max_tokens=400, messages=ASKED, tools=[WEATHER, TIME]) as stream:
        kinds = [event.type for event in stream if not event.type.startswith(("text", "input_json"))]
        message = stream.get_final_message()
    shape = [kind for at, kind in enumerate(kinds) if kind != "content_block_delta" or kinds[at - 1] != kind]
    block = ["content_block_start", "content_block_delta", "content_block_stop"]
    assert shape == ["message_start", *block * 3, "message_delta", "message_stop"]
    assert [one.type for one in message.content] == ["text", "tool_use", "tool_use"]
    assert message.content[1].input == {"city": "Lund", "days": 2}  # type: ignore[union-attr]
    assert message.stop_reason == "tool_use"


def test_tools_and_their_results(talking: Any, model: str) -> None:
    client = connect(talking)
    how: Any = {"model": model, "max_tokens": 400, "tools": [WEATHER, TIME]}
    first = client.messages.create(messages=ASKED, **how)
    calls: list[Any] = [block for block in first.content if block.type == "tool_use"]
    results: Any = [{"type": "tool_result", "tool_use_id": call.id, "content": "grey"} for call in calls]
    said: Any = {"role": "assistant", "content": [block.model_dump(exclude_unset=True) for block in first.content]}
    second = client.messages.create(messages=[*ASKED, said, {"role": "user", "content": results}], **how)
    assert second.content[0].text == "It is grey at noon."  # type: ignore[union-attr]
    assert second.stop_reason == "end_turn"


def test_a_cut_message_says_so(talking: Any, model: str) -> None:
    assert connect(talking).messages.create(model=model, max_tokens=2, messages=ASKED).stop_reason == "max_tokens"


def test_a_stop_sequence_is_named(service: Any) -> None:
    how: Any = {"model": service.runtime.model_name, "max_tokens": 40, "messages": ASKED}
    how["extra_body"] = {"temperature": 1, "seed": 3}
    text = connect(service).messages.create(**how).content[0].text  # type: ignore[union-attr]
    stop = next(sign for sign in text[2:] if sign.isascii() and sign.isprintable() and not sign.isspace())
    message = connect(service).messages.create(**how, stop_sequences=["\x00never", stop])
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", stop)
    assert "".join(block.text for block in message.content) == text[: text.index(stop)]  # type: ignore[union-attr]


def test_a_call_may_be_required(service: Any) -> None:
    """Over random weights: the constraint alone makes this a call."""
    how: Any = {"model": service.runtime.model_name, "max_tokens": 200, "messages": ASKED, "tools": [WEATHER]}
    choice: Any = {"type": "any", "disable_parallel_tool_use": True}
    message = connect(service).messages.create(**how, tool_choice=choice)
    assert message.content[0].input["city"] in ("Lund", "Malmö")  # type: ignore[union-attr,index]


@pytest.mark.parametrize("stream", [False, True])
def test_documents_are_cited_by_characters(quoting: Any, stream: bool) -> None:
    client = connect(quoting)
    how: Any = {"model": quoting.runtime.model_name, "max_tokens": 200, "messages": asked(document())}
    if stream:
        with client.messages.stream(**how) as running:
            message = running.get_final_message()
    else:
        message = client.messages.create(**how)
    cited = [block for block in message.content if block.citations]  # type: ignore[union-attr]
    assert len(message.content) > len(cited) == 1
    (citation,) = cited[0].citations  # type: ignore[union-attr,misc]
    assert citation.type == "char_location"
    assert citation.cited_text == FIRST == BOOK[citation.start_char_index : citation.end_char_index]
    assert (citation.document_index, citation.document_title) == (0, "Bridge")
    assert FIRST in cited[0].text  # type: ignore[union-attr]
    text = "".join(block.text for block in message.content)  # type: ignore[union-attr]
    assert text.startswith(f'It says "{FIRST}"')
    assert text.endswith("unicorns.")


def test_blocks_and_search_results_are_cited_by_blocks(quoting: Any) -> None:
    client, model = connect(quoting), quoting.runtime.model_name
    parts = [{"type": "text", "text": "Preface."}, {"type": "text", "text": BOOK}]
    result = {"type": "search_result", "source": "https://example.org/b", "title": "B", "content": parts[1:]}
    found: Any = client.messages.create(
        model=model, max_tokens=200, messages=asked({**result, "citations": {"enabled": True}})
    )
    (citation,) = next(block.citations for block in found.content if block.citations)
    assert citation.type == "search_result_location"
    assert (citation.source, citation.search_result_index) == ("https://example.org/b", 0)
    assert (citation.start_block_index, citation.end_block_index) == (0, 1)
    source = {"type": "content", "content": parts[1:]}
    found = client.messages.create(model=model, max_tokens=200, messages=asked(document() | {"source": source}))
    (citation,) = next(block.citations for block in found.content if block.citations)
    assert citation.type == "content_block_location"
    assert (citation.start_block_index, citation.end_block_index) == (0, 1)


@pytest.mark.parametrize("stream", [False, True])
def test_a_pdf_is_cited_by_pages(start_service: Callable[..., Any], make_scripted: Any, stream: bool) -> None:
    service = start_service(engine=make_scripted(lambda _: FIRST))
    pages = ["The river was crossed by a ferry until then.", FIRST, "It has seven arches of grey stone."]
    source = {
        "type": "base64",
        "media_type": "application/pdf",
        "data": base64.b64encode(make_files.pdf(pages)).decode(),
    }
    how: Any = {"model": service.runtime.model_name, "max_tokens": 200}
    how["messages"] = asked(document() | {"source": source})
    client = connect(service)
    if stream:
        with client.messages.stream(**how) as running:
            message: Any = running.get_final_message()
    else:
        message = client.messages.create(**how)
    (citation,) = next(block.citations for block in message.content if block.citations)
    assert citation.type == "page_location"
    assert (citation.start_page_number, citation.end_page_number) == (2, 3)  # the end is exclusive
    assert citation.cited_text == FIRST
    assert (citation.document_index, citation.document_title) == (0, "Bridge")


def test_places_in_blocks_and_pages() -> None:
    from retrieval.types import Page
    from service.api.anthropic.sources import Source

    blocks = Source("blocks", 2, "t", "ab\n\ncd\n\nef", (4, 8, 12))
    assert blocks.location(0, 2)["start_block_index"] == 0
    assert blocks.location(4, 6) | {"cited_text": "cd"} == blocks.location(4, 6)
    assert [blocks.location(5, 10)[name] for name in ("start_block_index", "end_block_index")] == [1, 3]
    pages = Source("pages", 0, None, "ab\ncd", pages=(Page(1, 0, 3), Page(2, 3, 5)))
    assert [pages.location(0, 4)[name] for name in ("start_page_number", "end_page_number")] == [1, 3]
    assert [pages.location(3, 5)[name] for name in ("start_page_number", "end_page_number")] == [2, 3]


def test_documents_without_citations_are_text_of_their_turn(quoting: Any) -> None:
    message: Any = connect(quoting).messages.create(
        model=quoting.runtime.model_name, max_tokens=200, messages=asked(document(citations=None))
    )
    assert FIRST in message.content[0].text
    assert not message.content[0].citations


def test_the_library_is_cited_by_documents(quoting: Any) -> None:
    stored = quoting.ingest("bridge.txt", BOOK.encode())["id"]
    message: Any = connect(quoting).messages.create(
        model=quoting.runtime.model_name,
        max_tokens=200,
        messages=asked(),
        extra_body={"folio": {"documents": [stored], "mode": "retrieval"}},
    )
    (citation,) = next(block.citations for block in message.content if block.citations)
    assert citation.type == "search_result_location"
    assert citation.source == stored
    assert message.model_extra["folio"]["mode"] == "retrieval"


def test_tokens_are_counted(talking: Any, quoting: Any, model: str) -> None:
    client = connect(talking)
    counted = client.messages.count_tokens(model=model, messages=ASKED, system="Be kind").input_tokens
    sent = client.messages.create(model=model, max_tokens=20, messages=ASKED, system="Be kind").usage
    assert counted == sent.input_tokens + (sent.cache_read_input_tokens or 0)
    assert client.messages.count_tokens(model=model, messages=ASKED, tools=[WEATHER]).input_tokens > counted
    client, name = connect(quoting), quoting.runtime.model_name
    counted = client.messages.count_tokens(model=name, messages=asked(document())).input_tokens
    assert counted == client.messages.create(model=name, max_tokens=20, messages=asked(document())).usage.input_tokens


def test_the_key_is_anthropics_header(start_service: Callable[..., Any], make_scripted: Any) -> None:
    service = start_service(engine=make_scripted(echo))
    secret = service.runtime.keys.create("ada")[1]
    how: Any = {"model": service.runtime.model_name, "max_tokens": 20, "messages": ASKED}
    assert connect(service, secret).messages.create(**how).content
    with pytest.raises(anthropic.AuthenticationError) as caught:
        connect(service, "wrong").messages.create(**how)
    assert caught.value.body["error"]["type"] == "authentication_error"  # type: ignore[index,call-overload]


IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "x"}}
BAD: list[tuple[dict[str, Any], int, str]] = [
    ({"messages": []}, 400, "messages"),
    ({"messages": asked(IMAGE)}, 400, "images"),
    ({"messages": [{"role": "system", "content": "x"}]}, 400, "role"),
    ({"messages": [*ASKED, {"role": "assistant", "content": "It is"}]}, 400, "last message"),
    ({"messages": [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t9"}]}]}, 400, "t9"),
    ({"messages": asked(document(""))}, 400, "no text"),
    ({"messages": asked(document(), document(citations=None))}, 400, "all documents"),
    ({"messages": asked(document()), "system": "x" * 20_001}, 400, "system"),
    ({"messages": asked(document()), "tools": [TIME]}, 400, "tools"),
    ({"messages": asked(document() | {"source": {"type": "url", "url": "http://x"}})}, 400, "elsewhere"),
    ({"messages": asked(document() | {"source": {"type": "base64", "media_type": "application/pdf", "data": "?"}})},
     400, "base64"),
    ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, 400, "thinking"),
    ({"tools": [{"name": "f", "input_schema": {"type": "array"}}]}, 400, "'f'"),
    ({"tools": [TIME], "tool_choice": {"type": "tool", "name": "x"}}, 400, "'x'"),
    ({"tools": [TIME], "tool_choice": {"type": "tool"}}, 400, "name"),
    ({"max_tokens": 0}, 400, "max_tokens"),
    ({"model": "other"}, 404, "other"),
    ({"messages": [{"role": "user", "content": "y" * 20_000}]}, 400, "tokens"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "status", "said"), BAD, ids=lambda value: str(value)[:40])
@pytest.mark.parametrize("stream", [False, True])
def test_bad_requests_are_anthropics_errors(
    talking: Any, model: str, change: dict[str, Any], status: int, said: str, stream: bool
) -> None:
    body = {"model": model, "max_tokens": 20, "messages": ASKED, "stream": stream, **change}
    answer: httpx.Response = talking.client.post("/v1/messages", json=body)
    assert answer.status_code == status, answer.text
    error = answer.json()
    assert error["type"] == "error"
    assert error["error"]["type"] == ("not_found_error" if status == 404 else "invalid_request_error")
    assert said in error["error"]["message"], error


def test_a_failure_in_the_midst_is_an_event(start_service: Callable[..., Any], make_scripted: Any) -> None:
    engine = make_scripted(lambda _: "x" * 400, 0.02)
    service = start_service(engine=engine)
    body = {"model": service.runtime.model_name, "max_tokens": 400, "messages": ASKED, "stream": True}
    seen: list[Any] = []
    with service.client.stream("POST", "/v1/messages", json=body) as answer:
        for line in answer.iter_lines():
            if line.startswith("data: "):
                seen.append(json.loads(line[6:]))
                if seen[-1]["type"] == "content_block_delta":
                    engine.failure = RuntimeError("secret path")
    assert seen[-1]["type"] == "error"
    assert "secret" not in json.dumps(seen)

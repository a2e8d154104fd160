"""The OpenAI routes, through the official client."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx
import openai
import pytest

BOOK = "The bridge at Hampton was built by Ada Miller in 1862. It has seven arches of grey stone.\n"
HELLO: Any = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]


def test_models(client: openai.OpenAI, model: str) -> None:
    assert client.models.retrieve(model).id == model
    assert [(one.id, one.tasks) for one in client.models.list()] == [  # type: ignore[attr-defined]
        (model, ["generate"]),
        ("minilm", ["embed", "rank"]),
    ]
    assert client.models.retrieve("minilm").id == "minilm"
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("gpt-none")
    assert caught.value.body["param"] == "model"  # type: ignore[index,call-overload]


def test_chat(client: openai.OpenAI, model: str) -> None:
    answer = client.chat.completions.create(model=model, messages=HELLO, max_tokens=8, temperature=0, seed=1)
    choice = answer.choices[0]
    assert choice.message.role == "assistant"
    assert choice.finish_reason in ("length", "stop")
    assert answer.usage is not None
    assert 0 < answer.usage.completion_tokens <= 8
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    details = answer.usage.completion_tokens_details
    assert details is not None
    assert details.accepted_prediction_tokens is not None


def test_chat_is_the_engine_on_the_template(
    client: openai.OpenAI, model: str, make_engine: Any, tokenizer: Any
) -> None:
    from service.engine.async_engine import AsyncEngine
    from service.engine.params import SamplingParams

    ids = tokenizer.apply_chat_template(HELLO, add_generation_prompt=True)["input_ids"]
    answer = client.chat.completions.create(
        model=model,
        messages=HELLO,
        max_tokens=12,
        temperature=0,
        logprobs=True,
        extra_body={"ignore_eos": True},
    )
    with AsyncEngine(make_engine()) as engine:
        (alone,) = engine.generate([ids], SamplingParams(max_tokens=12, ignore_eos=True))
    assert answer.choices[0].message.content == alone.text
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(ids)


def test_the_same_seed_gives_the_same_tokens_streamed_or_not(client: openai.OpenAI, model: str) -> None:
    how: Any = {"model": model, "messages": HELLO, "max_tokens": 10, "temperature": 1, "seed": 5, "n": 2}
    whole = [choice.message.content for choice in client.chat.completions.create(**how).choices]
    parts = ["", ""]
    roles = set()
    for chunk in client.chat.completions.create(**how, stream=True):
        for choice in chunk.choices:
            roles.add((choice.index, choice.delta.role)) if choice.delta.role else None
            parts[choice.index] += choice.delta.content or ""
    assert parts == whole
    assert parts[0] != parts[1]
    assert roles == {(0, "assistant"), (1, "assistant")}


def test_usage_is_the_last_chunk(client: openai.OpenAI, model: str) -> None:
    stream = client.chat.completions.create(
        model=model, messages=HELLO, max_tokens=4, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens > 0
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert chunks[-2].choices[0].finish_reason is not None


def test_logprobs(client: openai.OpenAI, model: str) -> None:
    answer = client.chat.completions.create(
        model=model, messages=HELLO, max_tokens=3, temperature=0, logprobs=True, top_logprobs=4
    )
    content = answer.choices[0].logprobs.content  # type: ignore[union-attr]
    assert content is not None
    assert answer.usage is not None
    assert len(content) == answer.usage.completion_tokens
    for token in content:
        assert len(token.top_logprobs) == 4
        assert token.logprob == max(top.logprob for top in token.top_logprobs) <= 0


def test_a_response_format_is_kept_to(client: openai.OpenAI, model: str) -> None:
    schema = {
        "type": "object",
        "properties": {"pages": {"type": "integer", "minimum": 0, "maximum": 999}},
        "required": ["pages"],
        "additionalProperties": False,
    }
    asked = {"model": model, "max_tokens": 40, "temperature": 1.0, "seed": 5}
    reply = client.chat.completions.create(
        **asked,
        messages=[{"role": "user", "content": "how long is it?"}],
        response_format={"type": "json_schema", "json_schema": {"name": "length", "schema": schema, "strict": True}},
    )
    assert 0 <= json.loads(reply.choices[0].message.content)["pages"] <= 999
    chosen = client.completions.create(
        **asked, prompt="yes or no?", extra_body={"structured_outputs": {"choice": ["yes", "no"]}}
    )
    assert chosen.choices[0].text in ("yes", "no")
    assert chosen.choices[0].finish_reason == "stop"


def test_penalties_and_biases_change_the_tokens(client: openai.OpenAI, model: str) -> None:
    asked = {"model": model, "prompt": "the rain the rain the rain", "max_tokens": 12, "temperature": 0, "logprobs": 0}
    plain = client.completions.create(**asked).choices[0].logprobs.tokens
    assert len(set(plain)) < len(plain)
    once = client.completions.create(**asked, presence_penalty=2.0, frequency_penalty=2.0).choices[0]
    assert len(set(once.logprobs.tokens)) > len(set(plain))
    forced = client.completions.create(**asked, logit_bias={"100": 100}, extra_body={"min_p": 0.1})
    assert len(set(forced.choices[0].logprobs.tokens)) == 1


def test_stop_strings_end_the_text(client: openai.OpenAI, model: str) -> None:
    how: Any = {"model": model, "prompt": "Hello", "max_tokens": 40, "temperature": 1, "seed": 3}
    text = client.completions.create(**how).choices[0].text
    stop = next(c for c in text if c.isascii() and c.isprintable())
    cut = client.completions.create(**how, stop=stop).choices[0]
    assert cut.finish_reason == "stop"
    assert cut.text == text[: text.index(stop)]


def test_completions_take_text_ids_and_lists(client: openai.OpenAI, model: str, tokenizer: Any) -> None:
    ids = tokenizer("Hello").input_ids
    how: Any = {"model": model, "max_tokens": 5, "temperature": 0}
    one = client.completions.create(prompt="Hello", **how).choices[0].text
    assert client.completions.create(prompt=ids, **how).choices[0].text == one
    many = client.completions.create(prompt=["Hello", "Other"], n=2, **how)
    assert [choice.index for choice in many.choices] == [0, 1, 2, 3]
    assert many.choices[0].text == many.choices[1].text == one
    assert many.usage is not None
    assert many.usage.prompt_tokens == len(ids) + len(tokenizer("Other").input_ids)
    streamed = client.completions.create(prompt="Hello", stream=True, logprobs=2, **how)
    assert "".join(chunk.choices[0].text for chunk in streamed) == one
    with_logprobs = client.completions.create(prompt="Hello", logprobs=2, **how).choices[0].logprobs
    assert with_logprobs is not None
    assert len(with_logprobs.tokens or []) == 5


def test_embeddings(client: openai.OpenAI) -> None:
    texts = ["a bridge of stone", "a stone bridge", "quarterly tax returns"]
    found = client.embeddings.create(model="minilm", input=texts)
    one, two, three = ([*item.embedding] for item in found.data)
    assert len(one) == 384
    assert sum(x * x for x in one) == pytest.approx(1, abs=1e-4)
    assert sum(a * b for a, b in zip(one, two, strict=True)) > sum(a * b for a, b in zip(one, three, strict=True))
    plain = client.embeddings.create(model="minilm", input=texts[0], encoding_format="float")
    assert plain.data[0].embedding == pytest.approx(one, abs=1e-6)
    assert found.usage.prompt_tokens > 0


def test_documents_travel_in_extra_body_and_citations_come_back(
    start_service: Callable[..., Any], make_scripted: Any
) -> None:
    service = start_service(engine=make_scripted())
    document = service.ingest("bridge.txt", BOOK.encode())["id"]
    client = openai.OpenAI(base_url=f"{service.url}/v1", api_key="none", max_retries=0)
    how: Any = {
        "model": service.runtime.model_name,
        "messages": [{"role": "user", "content": "Who built the bridge?"}],
        "extra_body": {"folio": {"documents": [document], "mode": "retrieval"}},
    }
    answer = client.chat.completions.create(**how)
    folio = answer.choices[0].model_extra["folio"]  # type: ignore[index]
    assert folio["mode"] == "retrieval"
    assert folio["citations"][0]["verified"]
    assert folio["citations"][0]["cited_text"] in (answer.choices[0].message.content or "")
    chunks = list(client.chat.completions.create(**how, stream=True))
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == answer.choices[0].message.content
    last = chunks[-1].choices[0].model_extra["folio"]  # type: ignore[index]
    assert last["citations"] == folio["citations"]


def test_a_conversation_keeps_its_history(client: openai.OpenAI, model: str) -> None:
    turns: list[Any] = [{"role": "user", "content": "One"}]
    for _ in range(3):
        answer = client.chat.completions.create(model=model, messages=turns, max_tokens=4)
        content = answer.choices[0].message.content
        turns += [{"role": "assistant", "content": content}, {"role": "user", "content": "And?"}]
    parts: Any = [{"role": "user", "content": [{"type": "text", "text": "In "}, {"type": "text", "text": "parts"}]}]
    assert client.chat.completions.create(model=model, messages=parts, max_tokens=2).choices


BAD: list[tuple[dict[str, Any], int, str | None]] = [
    ({"messages": "hello"}, 400, "messages"),
    ({"messages": []}, 400, "messages"),
    ({"messages": [{"role": "user", "content": "x"}] * 10_000}, 400, "messages"),
    ({"messages": [{"role": "king", "content": "x"}]}, 400, "messages.0.role"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        400,
        None,
    ),
    ({"guided_json": {"type": "object"}}, 400, "guided_json"),
    ({"max_tokens": -1}, 400, "max_tokens"),
    ({"max_tokens": 10**9}, 400, "messages"),
    ({"max_tokens": 10**40}, 400, "max_tokens"),
    ({"temperature": 99}, 400, "temperature"),
    ({"temperature": "hot"}, 400, "temperature"),
    ({"top_p": 0}, 400, "top_p"),
    ({"n": 1000}, 400, "n"),
    ({"stop": "x" * 10_240}, 400, "stop"),
    ({"stop": ["a"] * 100}, 400, "stop"),
    ({"stop": ""}, 400, "stop"),
    ({"seed": 1.5}, 400, "seed"),
    ({"tools": [{"type": "function"}]}, 400, "tools.0.function"),
    ({"logit_bias": {"1": 500}}, 400, "logit_bias.1"),
    ({"response_format": {"type": "json_schema"}}, 400, None),
    ({"response_format": {"type": "yaml"}}, 400, "response_format.type"),
    ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, 400, None),
    ({"structured_outputs": {"regex": "(a"}}, 400, "structured_outputs"),
    ({"structured_outputs": {"regex": "a"}, "folio": {"mode": "iterative"}}, 400, "mode"),
    ({"logit_bias": {"one": 5}}, 400, None),
    ({"logit_bias": {"99999999": 5}}, 400, "logit_bias"),
    ({"frequency_penalty": 3.0}, 400, "frequency_penalty"),
    ({"min_p": -1}, 400, "min_p"),
    ({"repetition_penalty": 1.2, "folio": {"mode": "iterative"}}, 400, "mode"),
    ({"top_logprobs": 3}, 400, None),
    ({"stream_options": {"include_usage": True}}, 400, None),
    ({"model": "other"}, 404, "model"),
    ({"drafter": "nosuch"}, 400, "drafter"),
    ({"attention": "nosuch"}, 400, "attention"),
    ({"folio": {"documents": ["nosuch"]}}, 404, None),
    ({"folio": {"mode": "magic"}}, 400, "folio.mode"),
    ({"messages": [{"role": "user", "content": "y" * 20_000}]}, 400, "messages"),
    ({"messages": [{"role": "user", "content": "\ud800"}]}, 400, None),
]


@pytest.mark.parametrize(("change", "status", "param"), BAD, ids=lambda value: str(value)[:40])
@pytest.mark.parametrize("stream", [False, True])
def test_bad_requests_name_the_parameter(
    service: Any, model: str, change: dict[str, Any], status: int, param: str | None, stream: bool
) -> None:
    body = {"model": model, "messages": [{"role": "user", "content": "x"}], "stream": stream, **change}
    if "stream_options" in change:
        body["stream"] = False
    answer = service.client.post(
        "/v1/chat/completions", content=json.dumps(body), headers={"content-type": "application/json"}
    )
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    if param is not None:
        assert error["param"] == param


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b'{"model": "\xff"}', b"[]", b"null", b""])
@pytest.mark.parametrize("route", ["chat/completions", "completions", "embeddings"])
def test_malformed_bodies_are_openai_errors(service: Any, route: str, content: bytes) -> None:
    headers = {"content-type": "application/json"}
    answer: httpx.Response = service.client.post(f"/v1/{route}", content=content, headers=headers)
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("prompt", [[], [[]], [-1], [10**9], 5, {"a": 1}, [1.5], ["a", 1]])
def test_a_prompt_of_the_wrong_kind(service: Any, model: str, prompt: Any) -> None:
    answer = service.client.post("/v1/completions", json={"model": model, "prompt": prompt, "max_tokens": 2})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"].startswith("prompt")


def test_a_ranker_of_its_own_is_listed_by_the_name_that_rerank_takes(start_service: Callable[..., Any]) -> None:
    service = start_service(reranker="cosine")
    listed = {one["id"]: one["tasks"] for one in service.client.get("/v1/models").json()["data"][1:]}
    assert listed == {"minilm": ["embed"], "cosine": ["rank"]}
    asked = {"model": "cosine", "query": "Who built it?", "documents": ["Ada built it.", "It is grey."]}
    assert service.client.post("/v1/rerank", json=asked).json()["model"] == "cosine"

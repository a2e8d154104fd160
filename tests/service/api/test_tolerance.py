"""What clients send without being asked, and what they expect of every answer."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import structlog

CHAT = "/v1/chat/completions"


def chat(service: Any, **asked: Any) -> Any:
    body = {"model": service.runtime.model_name, "messages": [{"role": "user", "content": "x"}], "max_tokens": 2}
    return service.client.post(CHAT, json={**body, **asked})


def test_null_and_empty_are_nothing(service: Any) -> None:
    names = [
        "stop",
        "n",
        "stream",
        "logprobs",
        "top_logprobs",
        "seed",
        "tools",
        "response_format",
        "user",
        "logit_bias",
    ]
    names += [
        "stream_options",
        "stop_token_ids",
        "ignore_eos",
        "modalities",
        "audio",
        "functions",
        "folio",
        "prediction",
    ]
    answer = chat(service, **dict.fromkeys(names))
    assert answer.status_code == 200, answer.text
    assert "x-folio-ignored" not in answer.headers
    assert chat(service, tools=[], stop=[]).status_code == 200
    missing = chat(service, messages=None)
    assert (missing.status_code, missing.json()["error"]["param"]) == (400, "messages")


def test_an_answer_can_be_sent_back_with_all_that_it_had(service: Any) -> None:
    said = chat(service).json()["choices"][0]["message"]
    echoed = {
        **said,
        "annotations": [],
        "tool_calls": [],
        "function_call": None,
        "audio": None,
        "reasoning_content": "h",
    }
    turns = [{"role": "user", "content": "x"}, echoed, {"role": "user", "content": "and?"}]
    answer = chat(service, messages=turns)
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-folio-ignored"] == "messages[].reasoning_content"


def test_an_unknown_field_is_told_and_logged_once(service: Any) -> None:
    with structlog.testing.capture_logs() as said:
        for _ in range(2):
            answer = chat(service, colour="red", stream_options=None, **{"size\n": 3})
            assert answer.headers["x-folio-ignored"] == "colour, size?"
        streamed = chat(service, colour="red", stream=True)
        assert streamed.headers["x-folio-ignored"] == "colour"
    assert [entry["fields"] for entry in said if "fields" in entry] == [["colour", "size?"]]


def test_what_would_change_the_answer_is_refused(service: Any) -> None:
    answer = chat(service, guided_json={"type": "object"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "guided_json")
    harmless = chat(service, use_beam_search=False, skip_special_tokens=True, min_tokens=0, guided_regex=None)
    assert harmless.status_code == 200
    assert "x-folio-ignored" not in harmless.headers


def test_usage_in_every_chunk(service: Any, read_events: Any) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    for path, prompt in (
        (CHAT, {"messages": [{"role": "user", "content": "x"}]}),
        ("/v1/completions", {"prompt": "x"}),
    ):
        asked = {"model": service.runtime.model_name, **prompt, "max_tokens": 6, "ignore_eos": True, "stream": True}
        asked["n"] = 2
        with service.client.stream("POST", path, json={**asked, "stream_options": options}) as answer:
            usages = [data["usage"] for _, data in read_events(answer) if data]
        counts = [usage["completion_tokens"] for usage in usages]
        assert counts == sorted(counts)
        assert counts[-1] == 12
        assert counts[-2] == 12
        assert len({usage["prompt_tokens"] for usage in usages}) == 1


@pytest.mark.parametrize(
    "path",
    ["/", "/healthz", "/readyz", "/health", "/ping", "/version", "/docs", "/openapi.json", "/v1/models", "/metrics"],
)
def test_head_is_get_without_a_body(service: Any, path: str) -> None:
    whole, head = service.client.get(path), service.client.head(path)
    assert whole.status_code == head.status_code == 200
    assert head.content == b""
    assert head.headers["content-type"] == whole.headers["content-type"]


@pytest.mark.parametrize(
    ("method", "path", "status", "allow"),
    [
        ("GET", CHAT, 405, "POST"),
        ("PUT", "/v1/documents", 405, "GET, HEAD, POST"),
        ("POST", "/v1/models", 405, "GET, HEAD"),
        ("DELETE", "/v1/documents/a/text", 405, "GET, HEAD"),
        ("POST", "/", 405, "GET, HEAD"),
        ("GET", "/v1/nosuch", 404, None),
        ("POST", "/v1/nosuch", 404, None),
        ("GET", "/nosuch", 404, None),
    ],
)
def test_wrong_paths_and_methods(service: Any, method: str, path: str, status: int, allow: str | None) -> None:
    answer = service.client.request(method, path)
    assert answer.status_code == status
    assert answer.headers.get("allow") == allow
    if path.startswith("/v1/"):
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    else:
        assert answer.headers["content-type"] == "application/problem+json"


def test_own_routes_say_their_problems_to_openais_clients_too(service: Any) -> None:
    answer = service.client.get("/v1/documents/nosuch")
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["error"]["message"] == answer.json()["detail"]
    wrong = service.client.post("/v1/search", json={"query": 5})
    assert wrong.json()["error"]["param"] == wrong.json()["errors"][0]["param"] == "query"


def test_a_request_has_an_id(service: Any) -> None:
    for path in ("/health", "/v1/nosuch", "/v1/models"):
        assert service.client.get(path).headers["x-request-id"].startswith("req_")
    assert service.client.get("/health", headers={"X-Request-Id": "mine-1"}).headers["x-request-id"] == "mine-1"
    assert "\n" not in service.client.get("/health", headers={"X-Request-Id": "a b"}).headers["x-request-id"]
    foreign = service.client.get("/health", headers={"Host": "evil.example"})
    assert foreign.headers["x-request-id"]


def test_a_context_too_long_is_said_as_openai_says_it(service: Any) -> None:
    error = chat(service, messages=[{"role": "user", "content": "y" * 9000}]).json()["error"]
    assert error["code"] == "context_length_exceeded"
    assert "maximum context length is 8192 tokens" in error["message"]


def test_what_went_wrong_where_nobody_foresaw_it(service: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("secret path")

    monkeypatch.setattr(service.runtime.library, "submit_search", broken)
    answer = service.client.post("/v1/search", json={"query": "x"})
    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert answer.headers["x-request-id"]


WORDS: list[tuple[str, dict[str, Any], str, str]] = [
    ("/v1/completions", {"prompt": 5}, "prompt", "prompt must be a string or a list"),
    ("/v1/completions", {"prompt": [1.5]}, "prompt.0", "prompt.0 must be"),
    ("/v1/completions", {"prompt": [-1]}, "prompt.0", "prompt.0 must be at least 0, not -1"),
    ("/v1/completions", {"prompt": [[1, "a"]]}, "prompt.0.1", "prompt.0.1 must be a valid integer"),
    ("/v1/completions", {"prompt": "x", "stop": {"a": 1}}, "stop", "stop must be a string or a list"),
    ("/v1/completions", {"prompt": "x", "stop": ["a", 5]}, "stop.1", "stop.1 must be a string"),
    ("/v1/completions", {"prompt": "x", "best_of": 3}, "best_of", "best_of must be 1"),
    ("/v1/completions", {"prompt": "x", "suffix": "y"}, "suffix", "suffix is not supported here"),
    (CHAT, {"messages": [{"role": "user", "content": 5}]}, "messages.0.content", "must be a string or a list"),
    (
        CHAT,
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        "messages.0.content.0.type",
        "must be 'text', not 'image_url'",
    ),
    (CHAT, {"messages": [{"content": "x"}]}, "messages.0.role", "messages.0.role is missing"),
    (CHAT, {"functions": [{"name": "f"}]}, "functions", "functions is not supported here"),
    ("/v1/embeddings", {"input": {"a": 1}}, "input", "input must be a string or a list"),
    ("/v1/rerank", {"query": "x", "documents": ["a", {"txt": "b"}]}, "documents.1.text", "documents.1.text is missing"),
    ("/tokenize", {}, "", "give prompt or messages"),
]


@pytest.mark.parametrize(("path", "change", "param", "says"), WORDS)
def test_faults_are_told_in_words(service: Any, path: str, change: dict[str, Any], param: str, says: str) -> None:
    model = "minilm" if path in ("/v1/embeddings", "/v1/rerank") else service.runtime.model_name
    body = {"model": model, **({"messages": [{"role": "user", "content": "x"}]} if path == CHAT else {}), **change}
    error = service.client.post(path, json=body).json()["error"]
    assert error["param"] == (param or None)
    assert says in error["message"]
    for leak in ("function-", "0x", "[", "class"):
        assert leak not in error["message"].replace("messages[]", "")


def test_uploads_keep_all_files_and_refuse_other_fields(service: Any) -> None:
    two = [("file", ("a.txt", b"The first text.")), ("file", ("b.txt", b"The second text."))]
    job = service.client.post("/v1/documents", files=two)
    assert job.status_code == 202
    assert [one["name"] for one in service.wait(job.json()["id"])["documents"]] == ["a.txt", "b.txt"]
    wrong = service.client.post("/v1/documents", files=two, data={"colection": "x"})
    assert wrong.status_code == 400
    assert "'colection'" in wrong.json()["detail"]
    nothing = service.client.post("/v1/documents", data={"file": "text, not a file"})
    assert nothing.status_code == 422
    assert nothing.json()["errors"][0]["reason"] == "must be a file"


def test_with_folio_what_cannot_be_had_is_refused_by_name(service: Any) -> None:
    folio = {"mode": "retrieval"}
    for more, param in [
        ({"logprobs": True}, "logprobs"),
        ({"prompt_logprobs": 1}, "prompt_logprobs"),
        ({"messages": [{"role": "system", "content": "x" * 20_001}, {"role": "user", "content": "x"}]}, "messages"),
        ({"messages": [{"role": "system", "content": "Be brief."}]}, "messages"),
    ]:
        answer = chat(service, folio=folio, **more)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


def test_pages_of_named_origins_may_call(start_service: Callable[..., Any]) -> None:
    service = start_service(cors_origins="https://app.example, http://localhost:3000")
    asked = {"Origin": "https://app.example", "Access-Control-Request-Method": "POST"}
    preflight = service.client.options(CHAT, headers={**asked, "Access-Control-Request-Headers": "authorization"})
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == "https://app.example"
    body = {"model": service.runtime.model_name, "messages": [{"role": "user", "content": "x"}], "max_tokens": 1}
    allowed = service.client.post(CHAT, json=body, headers={"Origin": "https://app.example"})
    assert allowed.status_code == 200
    assert allowed.headers["access-control-allow-origin"] == "https://app.example"
    assert "X-Request-Id" in allowed.headers["access-control-expose-headers"]
    other = service.client.post(CHAT, json=body, headers={"Origin": "https://evil.example"})
    assert other.status_code == 403
    assert "access-control-allow-origin" not in other.headers


def test_an_origin_is_no_wildcard() -> None:
    from service.errors import InvalidRequest
    from service.settings import load_settings

    with pytest.raises(InvalidRequest, match="cors_origins"):
        load_settings(cors_origins="*")


def test_the_description_declares_errors_keys_and_streams(service: Any) -> None:
    api = service.client.get("/openapi.json").json()
    assert api["components"]["securitySchemes"] == {"key": {"type": "http", "scheme": "bearer"}}
    for path, methods in api["paths"].items():
        for operation in methods.values():
            assert ("security" in operation) == (path not in ("/healthz", "/readyz", "/health", "/ping", "/version"))
            if path.startswith("/v1"):
                assert {"400", "401", "429", "503"} <= set(operation["responses"]), path
    for path in (CHAT, "/v1/completions", "/v1/answer"):
        assert "text/event-stream" in api["paths"][path]["post"]["responses"]["200"]["content"]
    assert "function-" not in json.dumps(api)

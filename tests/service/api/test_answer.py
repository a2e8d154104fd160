"""`POST /v1/answer`, as JSON and as a stream."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest

BOOK = "The bridge at Hampton was built by Ada Miller in 1862. It has seven arches of grey stone.\n"
ASK = {"question": "Who built the bridge at Hampton?"}


@pytest.fixture(scope="module")
def scripted_service(start_service: Callable[..., Any], make_scripted: Any) -> Any:
    """A service whose engine quotes the first sentence it is given."""
    service = start_service(engine=make_scripted())
    service.document = service.ingest("bridge.txt", BOOK.encode())["id"]
    return service


def test_an_answer_is_json_with_checked_citations(scripted_service: Any) -> None:
    answer = scripted_service.client.post("/v1/answer", json=ASK).json()
    citation = answer["citations"][0]
    assert citation["verified"]
    span = {"start": citation["start"], "end": citation["end"]}
    text = scripted_service.client.get(f"/v1/documents/{citation['document']}/text", params=span).text
    assert text == citation["cited_text"] == "The bridge at Hampton was built by Ada Miller in 1862."
    assert answer["mode"] == "long"
    assert answer["mode_reason"].startswith("fits: ")
    assert {"prompt_tokens", "output_tokens", "ttft_s", "decode_tokens_per_s", "retrieval_ms"} <= set(answer["stats"])


@pytest.mark.parametrize(
    "how", [{"json": {**ASK, "stream": True}}, {"json": ASK, "headers": {"Accept": "text/event-stream"}}]
)
def test_a_stream_has_the_events_in_order(scripted_service: Any, how: dict[str, Any], read_events: Any) -> None:
    with scripted_service.client.stream("POST", "/v1/answer", **how) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        found = read_events(response)
    names = [name for name, _ in found]
    assert names[0] == "search_results"
    assert names[-1] == "done"
    assert set(names) == {"search_results", "message", "citation", "stats", "done"}
    assert "".join(d["text"] for n, d in found if n == "message") == found[-1][1]["answer"]
    for _, data in (one for one in found if one[0] == "message"):
        assert "".join(token["text"] for token in data["tokens"]) == data["text"]
        assert all(token["source"] for token in data["tokens"])


def test_a_slow_stream_pings(start_service: Callable[..., Any], make_scripted: Any) -> None:
    service = start_service(engine=make_scripted(pause_s=0.4), ping_s=0.1)
    service.ingest("bridge.txt", BOOK.encode())
    with service.client.stream("POST", "/v1/answer", json={**ASK, "stream": True, "max_tokens": 8}) as response:
        lines = list(response.iter_lines())
    assert lines.count(": ping") >= 2
    assert "event: done" in lines


def test_leaving_a_stream_stops_the_generation(service: Any) -> None:
    service.ingest("bridge.txt", BOOK.encode())
    body = {**ASK, "stream": True, "max_tokens": 4000, "mode": "retrieval"}
    with service.client.stream("POST", "/v1/answer", json=body) as response:
        for line in response.iter_lines():
            if line.startswith("event: message"):
                break
    began = time.monotonic()
    assert service.idle()
    assert time.monotonic() - began < 5


def test_leaving_before_a_json_answer_stops_the_generation(service: Any) -> None:
    service.ingest("bridge.txt", BOOK.encode())
    with pytest.raises(httpx.ReadTimeout):
        service.client.post("/v1/answer", json={**ASK, "max_tokens": 6000}, timeout=0.1)
    assert service.idle()
    figures = service.client.get("/metrics").text
    assert 'route="/v1/answer",status="499"' in figures
    assert 'route="/v1/answer",status="500"' not in figures


def test_idempotency_of_an_answer(scripted_service: Any) -> None:
    headers = {"Idempotency-Key": "q1"}
    first = scripted_service.client.post("/v1/answer", json=ASK, headers=headers)
    assert scripted_service.client.post("/v1/answer", json=ASK, headers=headers).json() == first.json()
    other = scripted_service.client.post("/v1/answer", json={"question": "Else?"}, headers=headers)
    assert other.status_code == 422


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"question": ""}, 422, "question"),
        ({"question": "   "}, 400, "question"),
        ({"question": "x", "mode": "magic"}, 422, "mode"),
        ({"question": "x", "documents": ["nosuch"]}, 404, None),
        ({"question": "x", "collection": "nosuch"}, 404, None),
        ({"question": "x", "max_tokens": 0}, 422, "max_tokens"),
        ({"question": "x", "max_tokens": 65536}, 400, "question"),
        ({"question": "x", "temperature": -1}, 422, "temperature"),
        ({"question": "x", "drafter": "nosuch"}, 400, "drafter"),
        ({"question": "x", "attention": "nosuch"}, 400, "attention"),
        ({"question": "x", "attention": "quest:budget=1"}, 400, "attention"),
        ({"question": "x", "attention": "minference"}, 400, "attention"),
        ({"question": "x", "what": 1}, 422, "what"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_questions_that_cannot_be_asked(
    service: Any, body: dict[str, Any], status: int, param: str | None, stream: bool
) -> None:
    answer = service.client.post("/v1/answer", json={**body, "stream": stream})
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")
    problem = answer.json()
    named = problem.get("param") or (problem["errors"][0]["param"] if "errors" in problem else None)
    assert named == param


def test_a_failure_of_the_engine_says_nothing_of_its_insides(start_service: Any, make_scripted: Any) -> None:
    engine = make_scripted()
    engine.failure = RuntimeError("a secret at /some/path")
    service = start_service(engine=engine)
    service.ingest("bridge.txt", BOOK.encode())
    answer = service.client.post("/v1/answer", json=ASK)
    assert answer.status_code == 500
    assert "secret" not in answer.text

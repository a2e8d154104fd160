"""The gateway before replicas that stream, fail, end in mid-answer and come back; no Ray in it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any

import httpx
import pytest

from service.api.limits import BodyLimitMiddleware
from service.cluster.exchange import ACCEPTED, exchange
from service.cluster.figures import merged
from service.cluster.gateway import LOST, Gateway
from service.errors import Busy, ReplicaLost
from service.settings import load_settings

Messages = AsyncGenerator[Sequence[dict[str, Any]], None]


def start(kind: str = "application/json", status: int = 200) -> dict[str, Any]:
    return {"type": "http.response.start", "status": status, "headers": [(b"content-type", kind.encode())]}


def body(data: bytes, more: bool = False) -> dict[str, Any]:
    return {"type": "http.response.body", "body": data, "more_body": more}


class Scripted:
    """Replicas that answer each request with the next of some scripts: messages, or an exception."""

    def __init__(self, *scripts: Sequence[Any]) -> None:
        self.scripts = list(scripts)
        self.asked: list[tuple[str, bytes, str | None]] = []
        self.closed = 0

    async def send(self, scope: Any, body: bytes, key: str | None) -> Messages:
        self.asked.append((scope["path"], body, key))
        name = f"replica-{len(self.asked)}"
        try:
            yield [{"type": ACCEPTED, "replica": name}]
            for item in self.scripts.pop(0):
                if isinstance(item, Exception):
                    raise item
                yield [item]
        finally:
            self.closed += 1

    async def figures(self) -> dict[str, str]:
        return {"a": "# TYPE hits counter\nhits_total 1.0\n", "b": "# TYPE hits counter\nhits_total 2.0\n"}


Ask = Callable[..., httpx.Response]


@pytest.fixture
def ask() -> Ask:
    def run(replicas: Any, method: str, path: str, **request: Any) -> httpx.Response:
        async def call() -> httpx.Response:
            transport = httpx.ASGITransport(app=Gateway(replicas))
            async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
                return await client.request(method, path, **request)

        return asyncio.run(call())

    return run


def test_an_answer_is_passed_on_with_the_name_of_its_replica(ask: Ask) -> None:
    replicas = Scripted([start(status=201), body(b"{", True), body(b"}")])
    answer = ask(replicas, "POST", "/v1/answer", json={"question": "Who?", "documents": ["d"]})
    assert (answer.status_code, answer.text) == (201, "{}")
    assert answer.headers["x-folio-replica"] == "replica-1"
    path, sent, key = replicas.asked[0]
    assert (path, json.loads(sent)["documents"]) == ("/v1/answer", ["d"])
    assert key is not None


def test_what_only_reads_is_asked_again_of_another_replica(ask: Ask) -> None:
    replicas = Scripted([ReplicaLost(LOST)], [start(), body(b"[]")])
    answer = ask(replicas, "GET", "/v1/documents")
    assert (answer.status_code, answer.headers["x-folio-replica"]) == (200, "replica-2")


def test_a_generation_is_not_asked_again(ask: Ask) -> None:
    """It may be what ended its replica."""
    replicas = Scripted([ReplicaLost(LOST)], [start(), body(b"{}")])
    answer = ask(replicas, "POST", "/v1/answer", json={"question": "Who?"})
    assert answer.status_code == 503
    assert answer.headers["retry-after"]
    assert answer.json()["type"] == "urn:folio:problem:replica-lost"
    assert "has ended" in answer.json()["detail"]
    assert len(replicas.asked) == 1


def test_retries_come_to_an_end(ask: Ask) -> None:
    answer = ask(Scripted(*[[ReplicaLost(LOST)]] * 9), "GET", "/v1/documents")
    assert answer.status_code == 503


def test_an_upload_that_is_lost_says_what_to_do(ask: Ask) -> None:
    answer = ask(Scripted([ReplicaLost(LOST)]), "POST", "/v1/documents", content=b"x")
    assert answer.status_code == 503
    assert "never stored twice" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("path", "last"),
    [("/v1/answer", b'event: done\ndata: {"finish_reason": "error"}\n\n'), ("/v1/completions", None)],
)
def test_a_stream_that_breaks_off_ends_with_one_clear_error(ask: Ask, path: str, last: bytes | None) -> None:
    begun = [start("text/event-stream; charset=utf-8"), body(b"data: 1\n\n", True)]
    answer = ask(Scripted([*begun, ReplicaLost(LOST)]), "POST", path, json={})
    assert answer.status_code == 200
    assert answer.content.startswith(b"data: 1\n\n")
    assert LOST in answer.text
    if last is not None:
        assert answer.content.endswith(last)
    else:
        assert json.loads(answer.text.split("data: ")[2])["error"]["code"] == "replica_lost"


def test_an_answer_that_stops_without_an_end_is_lost(ask: Ask) -> None:
    begun = [start("text/event-stream"), body(b"data: 1\n\n", True)]
    assert LOST in ask(Scripted(begun), "POST", "/v1/answer", json={}).text


def test_a_full_cluster_says_so(ask: Ask) -> None:
    answer = ask(Scripted([Busy("Every replica's queue is full.")]), "POST", "/v1/completions", json={})
    assert answer.status_code == 429
    assert answer.json()["error"]["message"] == "Every replica's queue is full."


def test_what_nobody_foresaw_shows_no_text_of_it(ask: Ask) -> None:
    answer = ask(Scripted([RuntimeError("a secret path")]), "POST", "/v1/answer", json={})
    assert answer.status_code == 500
    assert "secret" not in answer.text


def test_figures_are_those_of_all_replicas(ask: Ask) -> None:
    text = ask(Scripted([start("text/plain"), body(b"of one")]), "GET", "/metrics").text
    assert 'hits_total{replica="a"} 1.0' in text
    assert 'hits_total{replica="b"} 2.0' in text
    refused = ask(Scripted([start(status=401), body(b"no")]), "GET", "/metrics")
    assert (refused.status_code, refused.text) == (401, "no")


def test_a_body_without_a_length_is_limited(tmp_path: Any) -> None:
    settings = load_settings(home=tmp_path, max_body_mb=0.001)
    replicas = Scripted()

    async def chunks() -> AsyncGenerator[bytes, None]:
        for _ in range(10):
            yield b"x" * 500

    async def call() -> httpx.Response:
        app = BodyLimitMiddleware(Gateway(replicas), settings)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://localhost") as client:
            return await client.post("/v1/answer", content=chunks())

    answer = asyncio.run(call())
    assert answer.status_code == 413
    assert not replicas.asked


def test_a_client_that_leaves_ends_the_work() -> None:
    replicas = Scripted()

    async def endless(scope: Any, sent: bytes, key: str | None) -> Messages:
        try:
            yield [start("text/event-stream")]
            await asyncio.sleep(60)
        finally:
            replicas.closed += 1

    replicas.send = endless  # type: ignore[method-assign]

    async def call() -> list[str]:
        incoming = [{"type": "http.request", "body": b"{}"}, {"type": "http.disconnect"}]
        sent: list[str] = []

        async def receive() -> Any:
            await asyncio.sleep(0.01)
            return incoming.pop(0)

        async def send(message: Any) -> None:
            sent.append(message["type"])

        scope = {"type": "http", "method": "POST", "path": "/v1/answer", "headers": []}
        await asyncio.wait_for(Gateway(replicas)(scope, receive, send), 5)
        return sent

    assert asyncio.run(call()) == ["http.response.start"]
    assert replicas.closed == 1


def test_exchange_gives_what_the_application_sends_and_tells_it_when_the_client_left() -> None:
    heard: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        request = await receive()
        await send(start())
        await send(body(request["body"], more=True))
        heard.append((await receive())["type"])

    async def call() -> list[Any]:
        messages: list[Any] = []
        stream = exchange(app, {"type": "http"}, b"hello")
        async for batch in stream:
            messages += batch
            if len(messages) == 2:
                await stream.aclose()
        return messages

    messages = asyncio.run(call())
    assert messages[1]["body"] == b"hello"
    assert heard == ["http.disconnect"]


def test_exchange_raises_what_the_application_raises() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise RuntimeError("broken")

    async def call() -> None:
        async for _ in exchange(app, {"type": "http"}, b""):
            pass

    with pytest.raises(RuntimeError, match="broken"):
        asyncio.run(call())


def test_figures_of_histograms_keep_their_shape() -> None:
    text = (
        '# HELP t Time.\n# TYPE t histogram\nt_bucket{le="1.0"} 1.0\nt_bucket{le="+Inf"} 2.0\nt_sum 3.0\nt_count 2.0\n'
    )
    found = merged({"a": text, "b": text}).decode()
    assert found.count("# TYPE t histogram") == 1
    assert 't_bucket{le="+Inf",replica="b"} 2.0' in found

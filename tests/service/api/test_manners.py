"""Under load, on time-outs, on vanishing clients and at the end."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.errors import DeviceLost

PROMPT = {"prompt": "x", "ignore_eos": True}


def body(service: Any, **more: Any) -> dict[str, Any]:
    return {"model": service.runtime.model_name, **PROMPT, **more}


def test_a_full_queue_is_429_with_retry_after(start_service: Callable[..., Any]) -> None:
    service = start_service(max_running=1, queue_limit=1)

    async def storm() -> list[httpx.Response]:
        async with httpx.AsyncClient(base_url=service.url, timeout=60) as client:
            asked = [client.post("/v1/completions", json=body(service, max_tokens=200)) for _ in range(6)]
            return await asyncio.gather(*asked)

    answers = asyncio.run(storm())
    codes = sorted(answer.status_code for answer in answers)
    assert codes == [200, 200, 429, 429, 429, 429]
    for answer in answers:
        if answer.status_code == 429:
            assert int(answer.headers["retry-after"]) >= 1
            assert answer.json()["error"]["type"] == "rate_limit_error"
    assert service.idle()


def test_n_counts_against_the_queue(start_service: Callable[..., Any]) -> None:
    service = start_service(max_running=1, queue_limit=2)
    assert service.client.post("/v1/completions", json=body(service, max_tokens=2, n=3)).status_code == 200
    assert service.client.post("/v1/completions", json=body(service, max_tokens=2, n=4)).status_code == 429


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"structured_outputs": {"regex": "("}}, "The regex of the output cannot be used"),
        ({"logit_bias": {"99999": 1}}, "logit_bias names token id 99999"),
        ({"max_tokens": 9000}, "the answer may have 9000."),
    ],
)
def test_every_route_refuses_in_the_same_words(service: Any, asked: dict[str, Any], says: str) -> None:
    template = service.runtime.chat.chat_ids([{"role": "user", "content": "Who?"}])
    chat = {"model": service.runtime.model_name, "messages": [{"role": "user", "content": "Who?"}]}
    sent = {"/v1/completions": {**chat, "prompt": template, "messages": None}, "/v1/chat/completions": chat}
    said = set()
    for route, content in sent.items():
        content = {key: value for key, value in content.items() if value is not None}
        for stream in (False, True):
            answer = service.client.post(route, json={**content, **asked, "stream": stream})
            assert answer.status_code == 400
            said.add(answer.json()["error"]["message"])
    assert len(said) == 1
    assert says in said.pop()


def test_time_out_to_the_first_token(start_service: Callable[..., Any], make_scripted: Any) -> None:
    service = start_service(engine=make_scripted(pause_s=1.0), first_token_timeout_s=0.2)
    answer = service.client.post("/v1/completions", json=body(service, max_tokens=8))
    assert answer.status_code == 504
    assert "first token" in answer.json()["error"]["message"]


def test_time_out_in_total_ends_a_stream_with_an_error(
    start_service: Callable[..., Any], make_scripted: Any, read_events: Any
) -> None:
    service = start_service(engine=make_scripted(lambda _: "word " * 100, pause_s=0.2), total_timeout_s=0.7)
    sent = body(service, max_tokens=400, stream=True)
    with service.client.stream("POST", "/v1/completions", json=sent) as response:
        found = read_events(response)
    assert found[-1][1]["error"]["type"] == "timeout_error"
    assert found[0][1]["choices"][0]["text"]


def test_a_lost_device_is_told_and_ends_readiness_before_the_process(
    start_service: Callable[..., Any], make_scripted: Any
) -> None:
    engine = make_scripted(pause_s=0.1)
    service = start_service(engine=engine)
    ended: list[tuple[int, str]] = []
    service.runtime.on_lost = lambda error: ended.append(
        (service.client.get("/readyz").status_code, service.client.get("/readyz").json()["detail"])
    )
    lost = DeviceLost("The device cuda:0 is lost: an illegal address.", hint="Start anew.")

    def step() -> list[Any]:
        if engine.has_work:
            raise lost
        return []

    engine.step = step
    answer = service.client.post("/v1/completions", json=body(service, max_tokens=8))
    assert answer.status_code == 503
    assert answer.json()["error"]["message"] == lost.detail
    for _ in range(100):
        if ended:
            break
        time.sleep(0.05)
    assert ended == [(503, lost.detail)]
    assert service.client.post("/v1/completions", json=body(service, max_tokens=8)).status_code == 503


def test_a_client_that_closes_in_mid_stream_leaves_no_page_behind(service: Any) -> None:
    host, port = service.url.removeprefix("http://").split(":")
    content = json.dumps(body(service, max_tokens=4000, stream=True, n=3)).encode()
    for _ in range(5):
        with socket.create_connection((host, int(port))) as raw:
            head = f"POST /v1/completions HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: application/json\r\n"
            raw.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
            raw.recv(2000)
    assert service.idle()
    service.runtime.engine.engine.check_integrity()


def test_metrics_have_vllms_suffixes(service: Any) -> None:
    service.client.post("/v1/completions", json=body(service, max_tokens=5))
    text = service.client.get("/metrics").text
    for name in (
        "time_to_first_token_seconds_bucket",
        "inter_token_latency_seconds_bucket",
        "num_requests_running",
        "num_requests_waiting",
        "kv_cache_usage_perc",
        "prefix_cache_queries_total",
        "prefix_cache_hits_total",
        "prompt_tokens_total",
        "generation_tokens_total",
        "spec_decode_num_accepted_tokens_total",
        "request_success_total",
    ):
        assert f"folio:{name}" in text, name
    assert 'route="/v1/completions",status="200"' in text.replace('method="POST",', "")
    service.client.get("/made/up/path")
    assert "made/up" not in service.client.get("/metrics").text


@pytest.fixture
def process(tiny_model: Path, tmp_path: Path) -> Iterator[Callable[..., tuple[subprocess.Popen[str], str]]]:
    """Start `folio serve` as users do; gives the process and its address."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str, **environment: str) -> tuple[subprocess.Popen[str], str]:
        command = [sys.executable, "-m", "service.cli", "serve", "--port", "0", "--model", str(tiny_model)]
        variables = os.environ | {"FOLIO_HOME": str(tmp_path / "home"), "COLUMNS": "200"} | environment
        running = subprocess.Popen([*command, *arguments], stderr=subprocess.PIPE, text=True, env=variables)
        started.append(running)
        assert running.stderr is not None
        first = running.stderr.readline()
        return running, first.split()[3] if first.startswith("Folio is at") else first

    yield start
    for running in started:
        running.kill()
        running.wait()


def wait_ready(url: str) -> None:
    for _ in range(600):
        if httpx.get(f"{url}/readyz").status_code == 200:
            return
        time.sleep(0.1)
    raise AssertionError("never ready")


def test_sigterm_drains_then_ends(process: Callable[..., Any], tiny_model: Path) -> None:
    running, url = process()
    assert httpx.get(f"{url}/healthz").status_code == 200
    wait_ready(url)
    sent = {"model": tiny_model.name, **PROMPT, "max_tokens": 3000, "stream": True}  # seconds on any machine
    with httpx.stream("POST", f"{url}/v1/completions", json=sent, timeout=60) as response:
        lines = response.iter_lines()
        next(lines)
        running.send_signal(signal.SIGTERM)
        until = time.monotonic() + 1
        while (ready := httpx.get(f"{url}/readyz")).status_code == 200 and time.monotonic() < until:
            time.sleep(0.02)
        assert (ready.status_code, ready.json()["status"]) == (503, "draining")
        refused = httpx.post(f"{url}/v1/completions", json=sent)
        assert refused.status_code == 503
        rest = [line for line in lines if line]
    assert rest[-1] == "data: [DONE]"
    assert running.wait(60) == 0


@pytest.mark.slow
def test_a_drain_that_takes_too_long_is_cut(process: Callable[..., Any], tiny_model: Path) -> None:
    running, url = process(FOLIO_DRAIN_TIMEOUT_S="0.5")
    wait_ready(url)
    sent = {"model": tiny_model.name, **PROMPT, "max_tokens": 8000, "stream": True}
    with httpx.stream("POST", f"{url}/v1/completions", json=sent, timeout=60) as response:
        lines = response.iter_lines()
        next(lines)
        began = time.monotonic()
        running.send_signal(signal.SIGTERM)
        assert running.wait(60) == 0
        assert time.monotonic() - began < 30


def test_an_open_address_needs_a_key(folio: Callable[..., Any], tmp_path: Path) -> None:
    code, _, said = folio("--home", tmp_path / "home", "serve", "--port", 0, "--host", "0.0.0.0")
    assert code == 2
    assert "folio keys create" in said


def test_a_taken_port_is_one_sentence(folio: Callable[..., Any], service: Any, tmp_path: Path) -> None:
    port = service.url.rpartition(":")[2]
    code, _, said = folio("--home", tmp_path / "home", "serve", "--port", port)
    assert code == 1
    assert f"127.0.0.1:{port}" in said


def test_a_model_that_cannot_be_loaded_ends_the_service(folio: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "no-model").mkdir()
    code, _, said = folio("--home", tmp_path / "home", "serve", "--port", 0, "--model", tmp_path / "no-model")
    assert code == 1
    assert "no-model" in said


def test_an_option_that_is_refused_ends_the_service(
    folio: Callable[..., Any], tmp_path: Path, tiny_model: Path
) -> None:
    serve = ("serve", "--port", 0, "--model", tiny_model, "--drafter", "nosuch")
    code, _, said = folio("--home", tmp_path / "home", *serve)
    assert code == 2
    assert "folio: unknown drafter 'nosuch'" in said
    assert "cannot be loaded" not in said

"""Connections: those that wait give way, those that stall end, and health is asked for whatever else is under way."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
import uvicorn

from service.api import connections

TOLD = {
    "1,000 half-open connections": "408 The request did not come within 10 s.",
    "30 bodies that drip": "408 The body came to a stop for 30 s.",
}


def test_connections_are_bounded(attack: Any, harmless: Callable[[Any], str]) -> None:
    told = harmless(attack)
    assert told == TOLD.get(attack.name, told)
    if attack.name == "3,000 idle connections":
        assert int(told.split()[0]) > 1000
    if attack.name == "300 aborted streams":
        assert int(told.split()[0]) > 0


@contextlib.contextmanager
def listening(app: Any, most: int) -> Iterator[int]:
    """An application behind the protocol; the port."""
    config = uvicorn.Config(app, port=0, lifespan="off", log_config=None, http=connections.protocol(most), ws="none")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(server._serve()), daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = server.force_exit = True
        thread.join(10)


async def slowly(scope: Any, receive: Any, send: Any) -> None:
    """Answers `/slow` after a while, everything else at once, and `/large` with more than a socket holds."""
    if scope["path"] == "/slow":
        await asyncio.sleep(1)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    body = b"x" * (64 << 20) if scope["path"] == "/large" else b"well"
    await send({"type": "http.response.body", "body": body})


def opened(port: int, sent: bytes = b"") -> socket.socket:
    line = socket.create_connection(("127.0.0.1", port), timeout=10)
    line.sendall(sent)
    return line


def is_closed(line: socket.socket) -> bool:
    line.settimeout(0.5)
    try:
        return line.recv(1) == b""
    except TimeoutError:
        return False
    except ConnectionError:
        return True


def test_the_longest_waiting_give_way_to_new_connections() -> None:
    with listening(slowly, most=4) as port:
        lines = []
        for _ in range(6):
            lines.append(opened(port))
            time.sleep(0.05)
        assert [is_closed(line) for line in lines] == [True, True, False, False, False, False]
        assert httpx.get(f"http://127.0.0.1:{port}/").text == "well"


def test_who_is_served_does_not_give_way_and_health_has_a_reserve() -> None:
    with listening(slowly, most=2) as port:
        slow = [opened(port, b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n") for _ in range(2)]
        time.sleep(0.1)
        assert httpx.get(f"http://127.0.0.1:{port}/").status_code == 429
        assert httpx.get(f"http://127.0.0.1:{port}/healthz").text == "well"
        assert all(line.recv(100).startswith(b"HTTP/1.1 200") for line in slow)


def test_beyond_the_reserve_nobody_is_let_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "RESERVE", 1)
    with listening(slowly, most=1) as port:
        slow = [opened(port, b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n")]
        time.sleep(0.1)
        slow.append(opened(port, b"POST /healthz HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n"))
        time.sleep(0.1)
        assert is_closed(opened(port))


def test_a_head_that_does_not_come_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HEAD_S", 0.3)
    with listening(slowly, most=9) as port:
        half = opened(port, b"GET / HTTP/1.1\r\nHost")
        idle = opened(port)
        assert half.recv(1000).startswith(b"HTTP/1.1 408 Request Timeout")
        assert idle.recv(1000) == b""
        again = opened(port, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        received = b""
        while not received.endswith(b"0\r\n\r\n"):
            received += again.recv(1000)
        again.sendall(b"GET / HT")
        assert again.recv(1000).startswith(b"HTTP/1.1 408")


def test_who_does_not_read_his_answer_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "BODY_S", 0.3)
    with listening(slowly, most=9) as port:
        line = opened(port, b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n")
        time.sleep(1.2)
        line.settimeout(2)
        received = 0
        with contextlib.suppress(ConnectionResetError):
            while part := line.recv(1 << 20):
                received += len(part)
        assert received < 64 << 20


def test_who_reads_slowly_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "BODY_S", 0.3)
    with listening(slowly, most=9) as port:
        line = opened(port, b"GET /large HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        received = 0
        while part := line.recv(1 << 20):
            received += len(part)
            time.sleep(0.02)
        assert received > 64 << 20


def test_requests_of_one_connection_are_answered_in_turn() -> None:
    with listening(slowly, most=9) as port:
        line = opened(port, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" * 3)
        received = b""
        while received.count(b"well") < 3:
            received += line.recv(1000)
        assert received.count(b"200 OK") == 3

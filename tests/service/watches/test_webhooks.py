"""Webhooks: bounded in time and size, never inward, and not led elsewhere."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import socket
import time
from typing import Any

import pytest

from service.errors import InvalidRequest
from service.watches import webhooks
from service.watches.webhooks import check_url, deliver, is_public

from .receiver import Receiver, receiver  # noqa: F401


@pytest.fixture(autouse=True)
def _one_try(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhooks, "PAUSES_S", (0.0,))
    monkeypatch.setattr(webhooks, "TIMEOUT_S", 1.0)


def told(url: str, private: bool = True, **data: Any) -> str | None:
    return asyncio.run(deliver(url, "secret", 7, data, private))


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "0.0.0.0",
        "224.0.0.1",
        "255.255.255.255",
        "::1",
        "::",
        "fe80::1",
        "fd00::1",
        "ff02::1",
        "::ffff:127.0.0.1",
        "::ffff:10.0.0.1",
        "64:ff9b::7f00:1",
        "2002:7f00:1::",
        "2002:a00:1::",
        "2001:0:7f00:1::",
    ],
)
def test_no_address_of_the_inside_is_public(address: str) -> None:
    assert not is_public(ipaddress.ip_address(address))
    shown = f"[{address}]" if ":" in address else address
    with pytest.raises(InvalidRequest, match="no public address"):
        check_url(f"https://{shown}/x", private=False)


@pytest.mark.parametrize("address", ["1.1.1.1", "93.184.215.14", "2606:4700:4700::1111", "::ffff:1.1.1.1"])
def test_addresses_of_the_open_internet_are(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    "url",
    [
        "http://example.com/",
        "ftp://example.com/",
        "file:///etc/passwd",
        "https://",
        "https:///x",
        "https://user:secret@example.com/",
        "https://example.com:99999/",
        "https://example.com:0/",
        "https://exa mple.com/",
        "https://ex\u00e4mple.com/",
        "https://[::1/",
        "gopher",
    ],
)
def test_what_is_no_webhook_is_refused(url: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        check_url(url, private=False)
    assert refused.value.param == "webhook"


def test_a_name_that_leads_inward_is_never_connected_to(
    receiver: Receiver,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    port = int(receiver.url.split(":")[2].split("/")[0])
    answers = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, port)) for host in ("1.1.1.1", "127.0.0.1")]

    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: answers)
    assert told(f"https://inward.example:{port}/", private=False) == (
        "inward.example leads to an address that is not public"
    )
    assert receiver.received == []


def test_it_is_looked_up_once_and_that_address_is_used(
    receiver: Receiver,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    port = int(receiver.url.split(":")[2].split("/")[0])
    asked: list[str] = []
    real = socket.getaddrinfo

    def looked_up(host: Any, *more: Any, **named: Any) -> Any:
        asked.append(host)
        if host == "rebinding.example":
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]
        return real(host, *more, **named)

    monkeypatch.setattr(socket, "getaddrinfo", looked_up)
    assert told(f"http://rebinding.example:{port}/told") is None
    [(headers, _)] = receiver.received
    assert headers["host"] == f"rebinding.example:{port}"
    assert asked.count("rebinding.example") == 1


def test_one_that_hangs_is_given_up(receiver: Receiver) -> None:  # noqa: F811
    receiver.pause_s = 3
    began = time.monotonic()
    assert told(receiver.url) == "no answer within 1 s"
    assert time.monotonic() - began < 2.5


def test_a_redirect_is_not_followed(receiver: Receiver) -> None:  # noqa: F811
    receiver.status, receiver.location = 307, receiver.url
    assert told(receiver.url) == "it answered 307"
    assert len(receiver.received) == 1


def test_a_failure_is_tried_again(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.setattr(webhooks, "PAUSES_S", (0.0, 0.0, 0.0))
    receiver.status = 500
    assert told(receiver.url) == "it answered 500"
    assert len(receiver.received) == 3


def test_what_is_too_long_is_told_without_its_words(receiver: Receiver) -> None:  # noqa: F811
    head = {"watch": "w", "change": 7, "question": "Q", "at": "now", "documents": []}
    assert told(receiver.url, **head, after={"answer": "x" * webhooks.MOST_BYTES}) is None
    [(_, body)] = receiver.received
    assert json.loads(body) == head | {"too_long": True}


def test_nothing_that_nobody_listens_to_breaks_anything() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    assert told(f"http://127.0.0.1:{port}/")

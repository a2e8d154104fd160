"""Streams as a response: what is sent, what begins it, what ends it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import Any

import pytest

from service.api.sse import EventStream, event
from service.api.waiting import ClientLeft
from service.errors import Busy, FolioError, InvalidRequest


class Words:
    """Each item as a line of its stream."""

    def begin(self) -> bytes:
        return b"<"

    def item(self, number: int, item: str) -> bytes:
        return f"{number}{item}".encode() if item else b""

    def end(self) -> bytes:
        return b">"

    def failure(self, error: FolioError) -> bytes:
        return f"!{error.status}".encode()


class Client:
    """Reads a response, and leaves after so many messages."""

    def __init__(self, stays_for: float = float("inf")) -> None:
        self.stays_for = stays_for
        self.sent: list[bytes] = []
        self.status: int | None = None
        self.complete = False
        self._left = asyncio.Event()

    async def receive(self) -> dict[str, Any]:
        if self.stays_for:
            await self._left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            return
        self.sent.append(message["body"])
        self.complete = not message["more_body"]
        if len(self.sent) >= self.stays_for:
            self._left.set()

    def read(self, *sources: Source, ping_s: float = 5.0) -> list[bytes]:
        """What is sent; once the response has ended, before the loop has, every source must be closed."""

        async def go() -> None:
            try:
                streams = [source.stream() for source in sources]
                await EventStream(streams, Words(), ping_s)({"type": "http"}, self.receive, self.send)
            finally:
                assert all(source.closed for source in sources)

        asyncio.run(go())
        return self.sent


class Source:
    """A stream of these words, `pause_s` apart, that then raises `error`; it knows whether it is closed."""

    def __init__(self, *words: str, pause_s: float = 0.0, error: Exception | None = None) -> None:
        self.words, self.pause_s, self.error = words, pause_s, error
        self.closed = False

    async def stream(self) -> AsyncGenerator[str, None]:
        try:
            for word in self.words:
                await asyncio.sleep(self.pause_s)
                yield word
            if self.error is not None:
                raise self.error
        finally:
            self.closed = True


def test_an_event_is_one_line_of_json() -> None:
    assert event({"a": "é\n"}, "message") == 'event: message\ndata: {"a": "é\\n"}\n\n'.encode()


def test_items_of_several_streams_are_sent_between_beginning_and_end() -> None:
    client = Client()
    sent = client.read(Source("a", "", "b"), Source("c"))
    assert client.status == 200
    assert client.complete
    assert (sent[0][:1], sent[-1]) == (b"<", b">")
    assert sorted(b"".join(sent[:-1])[1:].replace(b"0", b" ").replace(b"1", b" ").split()) == [b"a", b"b", b"c"]


def test_what_is_refused_before_the_first_item_has_no_response_yet() -> None:
    client = Client()
    with pytest.raises(Busy):
        client.read(Source("a", pause_s=0.5), Source(error=Busy("full")))
    assert client.status is None


@pytest.mark.parametrize(
    ("error", "said"),
    [(InvalidRequest("no"), b"!400"), (ValueError("a secret"), b"!500")],
)
def test_a_stream_that_breaks_off_says_so_and_ends_the_others(error: Exception, said: bytes) -> None:
    client = Client()
    sent = client.read(Source("x", "y", pause_s=0.05, error=error), Source(*"abc" * 1000, pause_s=0.01))
    assert sent[-1] == said
    assert client.complete


def test_silence_is_pinged_and_the_source_goes_on() -> None:
    sent = Client().read(Source("a", "b", pause_s=0.25), ping_s=0.1)
    assert [data for data in sent if not data.startswith(b":")] == [b"<0a", b"0b", b">"]
    assert sent.count(b": ping\n\n") == 2


def test_a_client_that_leaves_closes_every_stream() -> None:
    client = Client(stays_for=3)
    client.read(Source(*"abc" * 1000, pause_s=0.01), Source(*"abc" * 1000, pause_s=0.01))
    assert not client.complete


def test_a_client_that_leaves_before_the_first_item() -> None:
    client = Client(stays_for=0)
    with pytest.raises(ClientLeft):
        client.read(Source("a", pause_s=60))
    assert client.status is None


@pytest.mark.parametrize("words", [1, 200])
def test_no_task_is_made_for_an_item(words: int, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    ensure: Callable[..., Any] = asyncio.ensure_future
    monkeypatch.setattr(asyncio, "ensure_future", lambda *one, **how: made.append(one) or ensure(*one, **how))
    Client().read(Source(*"w" * words))
    assert len(made) <= 4

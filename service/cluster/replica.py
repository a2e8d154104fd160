"""One engine of a cluster: the whole application behind a method call instead of a socket."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from prometheus_client.exposition import generate_latest
from starlette.types import Message, Scope

from service.api.app import create_app
from service.cluster.exchange import ACCEPTED, exchange
from service.errors import Unavailable
from service.runtime import Runtime, State
from service.settings import Settings


class EngineReplica:
    """A runtime and its application. Make it with `start`."""

    def __init__(self, settings: Settings, name: str) -> None:
        self.settings = settings
        self.name = name
        self.runtime = Runtime(settings)
        self.app = create_app(settings, self.runtime)

    async def start(self) -> None:
        """Load library and model. Raises Unavailable, saying why, when the model cannot be loaded."""
        await self.runtime.start(serving=True)
        await self.runtime.ended.wait()
        if self.runtime.failure is not None:
            raise Unavailable(self.runtime.failure.detail)

    async def http(self, scope: Scope, body: bytes, key: str | None = None) -> AsyncGenerator[list[Message], None]:
        """The application's ASGI messages for one request, as many at once as there are; see `exchange`.

        `key` has done its work when the request is here: the router read it.
        """
        yield [{"type": ACCEPTED, "replica": self.name}]
        # The application that Starlette builds must not share a scope with anybody else's.
        async for messages in exchange(self.app, {**scope, "state": {}}, body):
            yield messages

    def figures(self) -> tuple[str, str]:
        """This replica's name and its Prometheus text."""
        return self.name, generate_latest(self.app.state.metrics.registry).decode()

    def check_health(self) -> None:
        """Raises Unavailable when only a new process can help; a database that is away is no such case."""
        if self.runtime.state in (State.LOADING, State.FAILED):
            failure = self.runtime.failure
            raise Unavailable(failure.detail if failure else "The engine does not run.")

    async def close(self) -> None:
        """Drain, abort what is left, let go of library and engine."""
        await self.runtime.stop()

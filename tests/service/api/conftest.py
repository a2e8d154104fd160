"""A real service on a real port: uvicorn in a thread, a tiny random model, its own data folder."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import uvicorn

from service.api.app import create_app
from service.runtime import Runtime
from service.settings import Settings, load_settings


@dataclass
class Service:
    """A running service, and a look inside it."""

    url: str
    runtime: Runtime
    client: httpx.Client

    def ingest(self, name: str, data: bytes, **headers: str) -> dict[str, Any]:
        """Upload a file and wait for its document."""
        answer = self.client.post("/v1/documents", files={"file": (name, data)}, headers=headers)
        assert answer.status_code == 202, answer.text
        return self.wait(answer.json()["id"], **headers)["documents"][0]

    def wait(self, job: str, **headers: str) -> dict[str, Any]:
        """The job, once it has ended."""
        for _ in range(600):
            found = self.client.get(f"/v1/jobs/{job}", headers=headers).json()
            if found["status"] not in ("queued", "running"):
                return found
            time.sleep(0.05)
        raise AssertionError(f"job {job} does not end: {found}")

    def idle(self) -> bool:
        """Whether the engine comes to rest with all pages back."""
        engine = self.runtime.engine
        for _ in range(200):
            if engine.engine.stats()["kv_pages_used"] == 0 and not engine.in_flight:
                return True
            time.sleep(0.05)
        return False


class _Thread(threading.Thread):
    """The event loop of one service."""

    def __init__(self, settings: Settings, engine: Any, tracing: Any) -> None:
        super().__init__(daemon=True)
        self.settings, self.engine, self.tracing = settings, engine, tracing
        self.started = threading.Event()
        self.failure: BaseException | None = None

    def run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:
            self.failure = error
            self.started.set()

    async def _serve(self) -> None:
        self.runtime = Runtime(self.settings, engine=self.engine)
        await self.runtime.start(serving=True)
        await self.runtime.ended.wait()
        app = create_app(self.settings, self.runtime)
        app.state.tracing = self.tracing
        config = uvicorn.Config(
            app,
            port=0,
            log_config=None,
            lifespan="off",
            access_log=False,
        )
        self.server = uvicorn.Server(config)
        self.server.capture_signals = _no_signals  # type: ignore[method-assign]
        serving = asyncio.create_task(self.server.serve())
        while not self.server.started:
            await asyncio.sleep(0.01)
        self.port = self.server.servers[0].sockets[0].getsockname()[1]
        self.started.set()
        await serving
        await self.runtime.stop()


class _no_signals:
    """Signals belong to the main thread, which is the tests'."""

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...


@pytest.fixture(scope="session")
def make_engine(tiny_model: Path) -> Callable[[], Any]:
    """Engines over the tiny model, which is loaded once; each service has one of its own."""
    from service.engine.config import EngineConfig
    from service.engine.engine import Engine
    from service.engine.loading.checkpoint import load_model

    loaded = load_model(str(tiny_model))
    return lambda: Engine(loaded, EngineConfig(kv_memory=64 << 20))


@pytest.fixture(scope="module")
def start_service(
    make_engine: Callable[[], Any], tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., Service]]:
    """Start a service with these settings; all of them end with the module."""
    running: list[_Thread] = []

    def start(**flags: Any) -> Service:
        flags.setdefault("drain_timeout_s", 1)
        home = flags.pop("home", None) or tmp_path_factory.mktemp("home")
        engine = flags.pop("engine", None) or make_engine()
        tracing = flags.pop("tracing", None)
        thread = _Thread(load_settings(home=home, model=str(tiny_model), **flags), engine, tracing)
        thread.start()
        assert thread.started.wait(60)
        if thread.failure is not None:
            raise thread.failure
        running.append(thread)
        url = f"http://127.0.0.1:{thread.port}"
        return Service(url, thread.runtime, httpx.Client(base_url=url, timeout=60))

    yield start
    for thread in running:
        thread.server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


@pytest.fixture(scope="module")
def service(start_service: Callable[..., Service]) -> Service:
    """A service without keys."""
    return start_service()


@pytest.fixture(scope="session")
def read_events() -> Callable[[httpx.Response], list[tuple[str, Any]]]:
    """Name and data of each server-sent event of a streamed response; None for ``[DONE]``."""

    def read(response: httpx.Response) -> list[tuple[str, Any]]:
        found = []
        name = "message"
        for line in response.iter_lines():
            if line.startswith("event: "):
                name = line[7:]
            elif line.startswith("data: "):
                found.append((name, None if line == "data: [DONE]" else json.loads(line[6:])))
                name = "message"
        return found

    return read


@pytest.fixture(scope="module")
def client(service: Any) -> openai.OpenAI:
    """The official client of the module's service."""
    return openai.OpenAI(base_url=f"{service.url}/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def model(client: openai.OpenAI) -> str:
    """The name that the service gives its model."""
    return client.models.list().data[0].id

"""`folio serve`: the application in uvicorn, with an orderly end.

SIGTERM drains: `/readyz` turns 503 at once while requests in flight go on and others are refused; when they have
ended, or the time for it is over, the rest is aborted. A second signal ends it at once.
"""

from __future__ import annotations

import asyncio
import gc
import socket
from concurrent.futures import ThreadPoolExecutor
from types import FrameType

import structlog
import uvicorn
from anyio import to_thread

from service.accounts.keys import KeyStore
from service.api.app import create_app
from service.api.connections import protocol
from service.cli.output import error_line, note
from service.errors import Exit, InvalidRequest, Unavailable
from service.libraries import open_library
from service.logs import configure_logging
from service.runtime import Runtime
from service.settings import Settings

THREADS = 64

log = structlog.get_logger(__name__)


class DrainingServer(uvicorn.Server):
    """A server that drains its runtime before it stops listening."""

    def __init__(self, config: uvicorn.Config, runtime: Runtime) -> None:
        super().__init__(config)
        self.runtime = runtime
        self._draining: asyncio.Task[None] | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """First signal: drain, then stop. Second: stop now."""
        if self._draining is None and self.started:
            loop = asyncio.get_running_loop()
            self._draining = loop.create_task(self._drain_and_stop())
        else:
            super().handle_exit(sig, frame)

    async def _drain_and_stop(self) -> None:
        await self.runtime.drain()
        self.should_exit = True


def run_server(settings: Settings) -> int:
    """Serve until told to stop; returns the exit code.

    Raises InvalidRequest when another address than loopback is asked for without a key, or the port is taken.
    """
    configure_logging(settings.log_level, settings.log_json)
    refuse_open_bind(settings)
    listening = _bind(settings)
    runtime = Runtime(settings)
    config = uvicorn.Config(
        create_app(settings, runtime),
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="off",
        timeout_graceful_shutdown=5,
        http=protocol(settings.max_connections),
        ws="none",
    )
    with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
        return runner.run(_serve(config, runtime, listening, settings))


async def _serve(config: uvicorn.Config, runtime: Runtime, listening: socket.socket, settings: Settings) -> int:
    _make_threads()
    await runtime.start(serving=True)
    server = DrainingServer(config, runtime)
    watching = asyncio.create_task(_watch(server, runtime))
    host, port = listening.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    note(f"Folio is at http://{shown}:{port} (documents in {settings.home}; stop with Ctrl-C)")
    note(f"Loading {runtime.model_name}; until it is there, documents can be added and searched")
    try:
        await server.serve(sockets=[listening])
    finally:
        watching.cancel()
        await runtime.stop()
    if runtime.failure is not None:
        error_line(runtime.failure.detail)
        return runtime.failure.exit_code
    return Exit.OK


def _make_threads() -> None:
    """More than one key may have requests: none waits for a thread that others hold."""
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(THREADS, thread_name_prefix="folio"))
    to_thread.current_default_thread_limiter().total_tokens = THREADS


async def _watch(server: DrainingServer, runtime: Runtime) -> None:
    """Say when the model is there; end the server when it cannot be loaded."""
    await runtime.ended.wait()
    if runtime.failure is not None:
        server.should_exit = True
    else:
        gc.collect()
        gc.freeze()  # or the collector looks at a million objects that stay, in the midst of somebody's answer
        note(f"Ready: {runtime.model_name}, {runtime.engine.window} tokens")


def refuse_open_bind(settings: Settings) -> None:
    """Raises InvalidRequest for an address beyond loopback while there is no API key."""
    if settings.loopback or settings.api_key is not None:
        return
    library = open_library(settings)
    try:
        if not KeyStore(library.database, settings).in_use():
            raise InvalidRequest(
                f"Listening on {settings.host} opens every document to the network.",
                hint="Make a key first (folio keys create) or set FOLIO_API_KEY; or listen on 127.0.0.1.",
                param="host",
            )
    finally:
        library.close()


def _bind(settings: Settings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((settings.host, settings.port))
        listening.listen(2048)  # now, so that nobody is refused while the rest is starting
    except OSError as error:
        listening.close()
        raise Unavailable(
            f"Cannot listen on {settings.host}:{settings.port}: {error.strerror or error}.",
            hint="Choose another --port (0 takes any free one).",
        ) from error
    listening.set_inheritable(True)
    return listening

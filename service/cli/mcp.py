"""`folio mcp`: the library as a Model Context Protocol server on stdio."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import typer

from service.cli.context import Attention, DeviceName, Drafter, Dtype, ModelName, settings_of
from service.errors import InvalidRequest

if TYPE_CHECKING:
    from service.settings import Settings


def register(app: typer.Typer) -> None:
    """Add the command of this file."""
    app.command("mcp")(mcp)


def mcp(
    context: typer.Context,
    model: ModelName = None,
    dtype: Dtype = None,
    device: DeviceName = None,
    drafter: Drafter = None,
    attention: Attention = None,
) -> None:
    """Speak the Model Context Protocol on stdin and stdout; over HTTP, `folio serve` does at /mcp."""
    settings = settings_of(context, model=model, dtype=dtype, device=device, drafter=drafter, attention=attention)
    check_installed()
    from service.models import check_request

    check_request(settings)
    asyncio.run(_serve(settings))


def check_installed() -> None:
    """Raises InvalidRequest: the extra is missing."""
    from importlib.util import find_spec

    if find_spec("mcp") is None:
        raise InvalidRequest("The mcp package is not installed.", hint="pip install 'folio-serve[mcp]'.")


async def _serve(settings: Settings) -> None:
    """Until stdin ends. Documents can be searched while the model loads."""
    from service.mcp.server import make_server
    from service.runtime import Runtime

    runtime = Runtime(settings)
    await runtime.start()
    try:
        await make_server(runtime).run_stdio_async()
    finally:
        await runtime.stop()

"""What commands share: settings from the global flags, and the library they name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from service.settings import Settings, load_settings

if TYPE_CHECKING:
    from retrieval.library import Library
    from retrieval.store.shelf import Shelf

LOCAL_OWNER = "local"
"""Owner of what the command line stores; also of what the service stores while no API key exists."""

JsonFlag = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]
Collection = Annotated[str | None, typer.Option("--collection", "-c", help="Name of a collection.")]
IntoCollection = Annotated[str, typer.Option("--collection", "-c", help="Name of the collection.")]
SourcePaths = Annotated[list[Path], typer.Argument(help="Files, or folders to go through.", metavar="PATH…")]
Host = Annotated[str | None, typer.Option(help="Address; another than loopback needs an API key.")]
Port = Annotated[int | None, typer.Option(help="Port; 0 for any free one.")]
ModelName = Annotated[
    str | None,
    typer.Option("--model", "-m", help="embedded, smollm2, a GGUF file, a checkpoint's folder, or a hub id."),
]
DeviceName = Annotated[str | None, typer.Option("--device", help="cpu, cuda, cuda:N or auto.")]
Backend = Annotated[str | None, typer.Option("--backend", help="Dense attention: auto, own, flash-attn, sdpa or flex.")]
TensorParallel = Annotated[
    int | None, typer.Option("--tp", min=1, max=64, help="Processes that share the model, a GPU each.")
]
Dtype = Annotated[str | None, typer.Option("--dtype", help="auto, float32, float64, bfloat16 or float16.")]
Weights = Annotated[str | None, typer.Option("--weights", help="On a CPU: auto, stored, int8 or plain.")]
Activations = Annotated[
    str | None, typer.Option("--activations", help="On a CPU: auto, or int8 with weights of integers.")
]
Drafter = Annotated[str | None, typer.Option("--drafter", help="NAME[:key=value,…]; never changes the tokens.")]
KVDtype = Annotated[
    str | None, typer.Option("--kv-dtype", help="Of the pages of KV: auto for the model's, float32, bfloat16 or int8.")
]
Attention = Annotated[str | None, typer.Option("--attention", help="Sparse attention policy, NAME[:key=value,…].")]


def settings_of(context: typer.Context, **flags: Any) -> Settings:
    """Settings from the global flags and the command's own (None: not given)."""
    return load_settings(**{**(context.find_root().obj or {}), **flags})


@contextmanager
def library_of(settings: Settings) -> Iterator[Library]:
    """The library of the data folder, open for the length of a block."""
    from service.libraries import open_library

    library = open_library(settings)
    try:
        yield library
    finally:
        library.close()


@contextmanager
def documents_of(settings: Settings) -> Iterator[Shelf]:
    """The documents of the data folder without their index, which takes a fraction of the library's time to open."""
    from service.libraries import open_shelf

    shelf = open_shelf(settings)
    try:
        yield shelf
    finally:
        shelf.close()

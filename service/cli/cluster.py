"""`folio cluster`: serve and ingest on Ray."""

from __future__ import annotations

import signal
import threading
from typing import Annotated

import typer

from service.cli.context import (
    LOCAL_OWNER,
    Attention,
    DeviceName,
    Drafter,
    Dtype,
    Host,
    IntoCollection,
    JsonFlag,
    ModelName,
    Port,
    SourcePaths,
    library_of,
    settings_of,
)
from service.cli.documents import report_ingest
from service.cli.output import note, working

cluster = typer.Typer(
    help="Serve and ingest on several processes or machines, by Ray.", no_args_is_help=True, rich_markup_mode=None
)

Address = Annotated[
    str | None, typer.Option(help="Ray cluster to join, as auto or HOST:PORT; default: one on this machine alone.")
]
Cpus = Annotated[int, typer.Option(min=1, help="Cores, and threads, of each.")]


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.add_typer(cluster, name="cluster")


@cluster.command("serve")
def serve(
    context: typer.Context,
    replicas: Annotated[int, typer.Option(min=1, help="Engines at the start, and the fewest.")] = 2,
    max_replicas: Annotated[int | None, typer.Option(min=1, help="Most engines; default: no autoscaling.")] = None,
    cpus: Cpus = 1,
    gpus: Annotated[float, typer.Option(min=0, help="GPUs of each engine.")] = 0.0,
    pin: Annotated[bool, typer.Option("--pin", help="Bind each engine to cores of its own.")] = False,
    address: Address = None,
    host: Host = None,
    port: Port = None,
    model: ModelName = None,
    device: DeviceName = None,
    dtype: Dtype = None,
    drafter: Drafter = None,
    attention: Attention = None,
) -> None:
    """Serve as `folio serve` does, with several engines; a question goes to the one that has its document's pages."""
    from service.api.server import refuse_open_bind
    from service.cluster import deployment
    from service.cluster.options import ClusterOptions

    options = ClusterOptions(replicas, max_replicas, cpus, gpus, pin)
    settings = settings_of(
        context, host=host, port=port, model=model, device=device, dtype=dtype, drafter=drafter, attention=attention
    )
    refuse_open_bind(settings)
    if settings.port == 0:
        settings = settings.model_copy(update={"port": deployment.free_port(settings.host)})
    with working("Starting Ray …"):
        deployment.start_ray(address, cpus=(max_replicas or replicas) * cpus)
    stop = _stop_signals()  # after Ray, which sets handlers of its own
    try:
        with working(f"Loading {settings.model} on {replicas} replicas …"):
            deployment.serve_application(settings, options)
        note(f"Folio is at http://{settings.host}:{settings.port} ({replicas} replicas; stop with Ctrl-C)")
        stop.wait()
    finally:
        deployment.stop_serving()


@cluster.command("ingest")
def ingest(
    context: typer.Context,
    paths: SourcePaths,
    collection: IntoCollection = "default",
    workers: Annotated[int, typer.Option(min=1, help="Parsers, and as many embedders, at most.")] = 1,
    address: Address = None,
    as_json: JsonFlag = False,
) -> None:
    """Read files into the library as `folio ingest` does, with parsers and embedders in processes of their own.

    Every machine of the cluster must see the files under the same paths."""
    from service.cluster import deployment
    from service.cluster.ingest import ingest as ingest_by_ray
    from service.libraries import embedder_of

    settings = settings_of(context)
    with working("Starting Ray …"):
        deployment.start_ray(address, cpus=2 * workers + 1)
    try:
        with library_of(settings) as library, working("Ingesting …"):
            results = ingest_by_ray(library, embedder_of(settings), paths, collection, LOCAL_OWNER, workers)
    finally:
        deployment.leave_ray()
    report_ingest(paths, results, as_json)


def _stop_signals() -> threading.Event:
    """An event that the first SIGINT or SIGTERM sets, to drain; the second ends at once."""
    stop = threading.Event()

    def handle(number: int, frame: object) -> None:
        signal.signal(number, signal.SIG_DFL)
        stop.set()

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, handle)
    return stop

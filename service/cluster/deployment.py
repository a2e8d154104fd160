"""The cluster's two deployments on Ray Serve: `Engine`, one engine a replica, and `Gateway`, which holds none.

Ray is imported when something here is called, so that Folio runs without it.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from starlette.types import ASGIApp

from service.cluster.handle import gateway_application
from service.cluster.options import ClusterOptions
from service.errors import InvalidRequest, Unavailable
from service.settings import Settings

APP = "folio"
CHEAP_REQUESTS = 64
"""Requests beyond the engine's slots and queue that a replica takes at once: listings, uploads, searches."""
OBJECT_STORE_BYTES = 128 << 20
"""Of a Ray started here. Only large uploads and Ray Data's blocks pass through it; what does not fit goes to disk."""


def application(settings: Settings, options: ClusterOptions) -> Any:
    """The Serve application of these settings, for `serve.run` or a KubeRay manifest."""
    serve = import_ray().serve
    from ray.serve.config import RequestRouterConfig

    from service.cluster.engine import Engine

    values = _plain(settings, options)
    scaling: dict[str, Any] = {"num_replicas": options.replicas}
    if options.max_replicas is not None:
        scaling = {
            "autoscaling_config": {
                "min_replicas": options.replicas,
                "max_replicas": options.max_replicas,
                "target_ongoing_requests": settings.max_running,
                "upscale_delay_s": 10.0,
                "downscale_delay_s": options.downscale_delay_s,
            }
        }
    routing: dict[str, Any] = {
        "request_router_class": "service.cluster.router.AffinityRouter",
        "request_router_kwargs": {"policy": options.routing},
    }
    engine = serve.deployment(Engine).options(
        name="Engine",
        max_ongoing_requests=settings.max_running + settings.queue_limit + CHEAP_REQUESTS,
        ray_actor_options={"num_cpus": options.cpus, "num_gpus": options.gpus},
        graceful_shutdown_timeout_s=settings.drain_timeout_s + 10,
        graceful_shutdown_wait_loop_s=0.5,
        health_check_period_s=2.0,
        max_constructor_retry_count=3,
        request_router_config=RequestRouterConfig(**routing),
        **scaling,
    )

    def gateway() -> ASGIApp:
        return gateway_application(settings, APP, "Engine")

    ingress = serve.deployment(serve.ingress(gateway)()).options(
        name="Gateway", num_replicas=options.gateways, max_ongoing_requests=10_000, ray_actor_options={"num_cpus": 0}
    )
    # Nothing here depends on the number of replicas: another number must not replace those that run.
    return ingress.bind(engine.bind(values, options.cpus, options.pin))


def from_arguments(arguments: Mapping[str, Any]) -> Any:
    """The application from the `args` of a Serve config file: fields of `ClusterOptions`; settings from FOLIO_*.

    Raises InvalidRequest for an unknown field, SQLite on several machines, or an open address without a key.
    """
    from service.api.server import refuse_open_bind
    from service.settings import load_settings

    unknown = sorted(set(arguments) - {field.name for field in fields(ClusterOptions)})
    if unknown:
        raise InvalidRequest(f"There is no cluster option {unknown[0]!r}.", param=unknown[0])
    settings = load_settings()
    refuse_open_bind(settings)
    _refuse_sqlite_on_many(settings)
    return application(settings, ClusterOptions(**arguments))


def start_ray(address: str | None, cpus: float) -> None:
    """Join the cluster at `address`, or start one of this machine alone, which nobody else can reach.

    Raises Unavailable when there is no cluster at the address.
    """
    os.environ.setdefault("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "60")  # a busy machine is slow to start
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's own default, 15, is for batch work
    if address is None:  # despite its name, this is what makes Ray listen on loopback alone; read at its import
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    ray = import_ray()
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR", "ignore_reinit_error": True}
    try:
        if address is not None:
            ray.init(address=address, **quiet)
        else:
            ray.init(
                address="local",
                num_cpus=cpus,
                object_store_memory=OBJECT_STORE_BYTES,
                include_dashboard=False,
                **quiet,
            )
    except Exception as error:  # Ray raises bare ones too
        where = f"Ray at {address!r} cannot be joined" if address else "Ray cannot be started here"
        raise Unavailable(f"{where}: {_first_line(error)}.", hint="`ray status` tells what is wrong.") from error


def serve_application(settings: Settings, options: ClusterOptions) -> None:
    """Deploy on the Ray that `start_ray` joined and return once every replica is ready.

    Raises InvalidRequest for SQLite on several machines; Unavailable when the replicas do not start, saying why.
    """
    serve = import_ray().serve
    _refuse_sqlite_on_many(settings)
    try:
        serve.start(proxy_location="HeadOnly", http_options={"host": settings.host, "port": settings.port})
        serve.run(application(settings, options), name=APP, route_prefix="/")
    except (RuntimeError, TimeoutError) as error:
        raise Unavailable(f"The cluster did not start: {_cause(_report(), str(error))}") from error


def withdraw() -> None:
    """Drain the replicas and end them; Serve itself stays."""
    import_ray().serve.delete(APP)


def stop_serving() -> None:
    """Drain the replicas and end them, then leave Ray, or end the one that was started here."""
    ray = import_ray()
    if ray.is_initialized():
        ray.serve.shutdown()
    leave_ray()


def leave_ray() -> None:
    """Leave the Ray that `start_ray` joined, or end the one that it started."""
    import_ray().shutdown()


def import_ray() -> Any:
    """Ray with Serve. Raises Unavailable where it is not installed."""
    try:
        import ray
        import ray.serve
    except ImportError as error:
        raise Unavailable("Ray is not installed.", hint="pip install 'folio-serve[cluster]'") from error
    return ray


def free_port(host: str) -> int:
    """A port that nobody listens on just now."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def _refuse_sqlite_on_many(settings: Settings) -> None:
    import ray

    sqlite = settings.database_url.startswith("sqlite") or not settings.database_url
    if sqlite and len([node for node in ray.nodes() if node["Alive"]]) > 1:
        raise InvalidRequest(
            "A cluster of several machines needs a database that all of them reach; SQLite is on one.",
            hint="Set FOLIO_DATABASE_URL to a PostgreSQL.",
            param="database_url",
        )


def _plain(settings: Settings, options: ClusterOptions) -> dict[str, Any]:
    """Settings as they cross processes: the threads of a replica are the cores it reserves."""
    values = settings.model_dump()
    values["threads"] = settings.threads or options.cpus
    return values


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def _report() -> str:
    """What Ray Serve says of the deployments, tracebacks of replicas that failed to start included."""
    from ray import serve

    found = serve.status().applications.get(APP)
    return "\n".join(one.message for one in found.deployments.values()) if found else ""


def _cause(report: str, otherwise: str) -> str:
    """The last exception that Ray's report names, as a sentence; else the first line of `otherwise`."""
    named = re.findall(r"^(?:service\.errors\.\w+|\w*Error): (.+)", report, re.M)
    found = named[-1] if named else (otherwise.strip().splitlines() or ["no reason was given"])[0]
    return f"{str(found).strip().rstrip('.')}."

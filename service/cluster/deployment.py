"""The cluster's two deployments on Ray Serve: `Engine`, one engine a replica, and `Gateway`, which holds none.

Ray is imported when something here is called, so that Folio runs without it.
"""

from __future__ import annotations

import asyncio
import os
import re
import socket
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import structlog
from starlette.types import ASGIApp, Message, Scope

from service.api.limits import BodyLimitMiddleware
from service.api.security import SecurityMiddleware
from service.cluster.gateway import LOST, Gateway
from service.cluster.replica import EngineReplica
from service.errors import Busy, FolioError, InvalidRequest, ReplicaLost, Unavailable
from service.logs import configure_logging
from service.settings import Settings

log = structlog.get_logger(__name__)

APP = "folio"
ACCEPT_TIMEOUT_S = 30.0
"""Longest wait for a replica that takes a request: longer than a restart of Ray's router, shorter than patience."""
FIGURES_TIMEOUT_S = 5.0
CHEAP_REQUESTS = 64
"""Requests beyond the engine's slots and queue that a replica takes at once: listings, uploads, searches."""
OBJECT_STORE_BYTES = 128 << 20
"""Of a Ray started here. Only large uploads and Ray Data's blocks pass through it; what does not fit goes to disk."""


@dataclass(frozen=True)
class ClusterOptions:
    """How many replicas, and what each of them gets.

    Attributes:
        replicas: replicas at the start, and the fewest.
        max_replicas: most replicas; None for no autoscaling.
        cpus, gpus: reserved for each replica; also its threads, unless the settings say otherwise.
        pin: bind each replica of a machine to its own cores.
        routing: affinity, or random, which is what affinity is measured against.
        downscale_delay_s: quiet time before a replica, and its KV pages with it, is given up.
    """

    replicas: int = 1
    max_replicas: int | None = None
    cpus: int = 1
    gpus: float = 0.0
    pin: bool = False
    routing: Literal["affinity", "random"] = "affinity"
    downscale_delay_s: float = 600.0

    def __post_init__(self) -> None:
        if self.replicas < 1 or (self.max_replicas or self.replicas) < self.replicas:
            raise InvalidRequest(
                f"A cluster has 1 or more replicas, and at most no fewer: not {self.replicas} to {self.max_replicas}.",
                param="replicas",
            )


class Engine(EngineReplica):
    """An `EngineReplica` as Ray Serve makes it: its name and its cores come from Ray."""

    async def __init__(self, values: Mapping[str, Any], options: ClusterOptions) -> None:  # type: ignore[misc]
        from ray import serve

        context = serve.get_replica_context()
        settings = Settings(**values)
        configure_logging(settings.log_level, settings.log_json)
        if options.pin:
            _pin(context.rank.local_rank, options.cpus)
        super().__init__(settings, context.replica_id.unique_id)
        await self.start()

    async def __del__(self) -> None:  # Ray awaits it once the replica is drained
        await self.close()


class ServeReplicas:
    """The engines behind a gateway, by a handle of Ray Serve."""

    def __init__(self, handle: Any) -> None:
        self._http = handle.options(method_name="http", stream=True)
        self._handle = handle

    async def send(self, scope: Scope, body: bytes, key: str | None) -> AsyncGenerator[Sequence[Message], None]:
        """See `gateway.Replicas`."""
        response = self._http.remote(scope, body, key=key)
        ended = False
        try:
            try:
                async with asyncio.timeout(ACCEPT_TIMEOUT_S):
                    yield await anext(response)
            except TimeoutError:
                raise Unavailable(
                    f"No replica took this request within {ACCEPT_TIMEOUT_S:.0f} s: all are starting, full or gone.",
                    hint="Try again later.",
                    retry_after=10,
                ) from None
            async for messages in response:
                yield messages
            ended = True
        except FolioError:
            raise
        except Exception as error:
            ended = True
            raise _in_words(error) from error
        finally:
            if not ended:
                response.cancel()

    async def figures(self) -> dict[str, str]:
        """See `gateway.Replicas`. Replicas that do not answer in time are left out."""
        found = await self._handle.broadcast("figures").results_async(
            timeout_s=FIGURES_TIMEOUT_S, return_exceptions=True
        )
        return dict(one for one in found if isinstance(one, tuple))


def application(settings: Settings, options: ClusterOptions) -> Any:
    """The Serve application of these settings, for `serve.run` or a KubeRay manifest."""
    serve = import_ray().serve
    from ray.serve.config import RequestRouterConfig

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
    engine = serve.deployment(Engine).options(
        name="Engine",
        max_ongoing_requests=settings.max_running + settings.queue_limit + CHEAP_REQUESTS,
        ray_actor_options={"num_cpus": options.cpus, "num_gpus": options.gpus},
        graceful_shutdown_timeout_s=settings.drain_timeout_s + 10,
        graceful_shutdown_wait_loop_s=0.5,
        health_check_period_s=2.0,
        max_constructor_retry_count=3,
        request_router_config=RequestRouterConfig(
            request_router_class="service.cluster.router.AffinityRouter",
            request_router_kwargs={"policy": options.routing},
        ),
        **scaling,
    )

    def gateway() -> ASGIApp:
        from ray import serve

        configure_logging(settings.log_level, settings.log_json)
        replicas = ServeReplicas(serve.get_deployment_handle("Engine", app_name=APP))
        return SecurityMiddleware(BodyLimitMiddleware(Gateway(replicas), settings), settings)

    ingress = serve.deployment(serve.ingress(gateway)()).options(
        name="Gateway", num_replicas=1, max_ongoing_requests=10_000, ray_actor_options={"num_cpus": 0}
    )
    return ingress.bind(engine.bind(values, options))


def from_arguments(arguments: Mapping[str, Any]) -> Any:
    """The application from the `args` of a Serve config file: fields of `ClusterOptions`; settings from FOLIO_*."""
    from service.settings import load_settings

    return application(load_settings(), ClusterOptions(**arguments))


def start_ray(address: str | None, cpus: float) -> None:
    """Join the cluster at `address`, or start one of this machine alone, which nobody else can reach.

    Raises Unavailable when there is no cluster at the address.
    """
    os.environ.setdefault("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "60")  # a busy machine is slow to start
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
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
                _node_ip_address="127.0.0.1",
                **quiet,
            )
    except (ConnectionError, RuntimeError, ValueError) as error:
        where = f"Ray at {address!r} cannot be joined" if address else "Ray cannot be started here"
        raise Unavailable(f"{where}: {_first_line(error)}.", hint="`ray status` tells what is wrong.") from error


def serve_application(settings: Settings, options: ClusterOptions) -> None:
    """Deploy on the Ray that `start_ray` joined and return once every replica is ready.

    Raises InvalidRequest for SQLite on several machines; Unavailable when the replicas do not start, saying why.
    """
    serve = import_ray().serve
    import ray

    if len([node for node in ray.nodes() if node["Alive"]]) > 1 and not settings.database_url:
        raise InvalidRequest(
            "A cluster of several machines needs a database that all of them reach; SQLite is on one.",
            hint="Set FOLIO_DATABASE_URL to a PostgreSQL.",
            param="database_url",
        )
    try:
        serve.start(proxy_location="HeadOnly", http_options={"host": settings.host, "port": settings.port})
        serve.run(application(settings, options), name=APP, route_prefix="/")
    except RuntimeError as error:
        raise Unavailable(f"The cluster did not start: {_cause(str(error))}") from error


def stop_serving() -> None:
    """Drain the replicas and end them, then leave Ray, or end the one that was started here."""
    ray = import_ray()
    if ray.is_initialized():
        ray.serve.shutdown()
        ray.shutdown()


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


def _plain(settings: Settings, options: ClusterOptions) -> dict[str, Any]:
    """Settings as they cross processes: the threads of a replica are the cores it reserves."""
    values = settings.model_dump()
    values["threads"] = settings.threads or options.cpus
    return values


def _pin(number: int, cpus: int) -> None:
    """Bind this process to its share of the cores it may run on."""
    cores = sorted(os.sched_getaffinity(0))
    mine = [cores[(number * cpus + i) % len(cores)] for i in range(cpus)]
    os.sched_setaffinity(0, mine)


def _in_words(error: Exception) -> Exception:
    """Ray's errors as ours; one that the application raised stays as it is."""
    from ray.exceptions import RayActorError, TaskCancelledError
    from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

    if isinstance(error, RayActorError | TaskCancelledError):
        return ReplicaLost(LOST)
    if isinstance(error, BackPressureError):
        return Busy("Every replica's queue is full.", hint="Try again later.")
    if isinstance(error, DeploymentUnavailableError):
        return Unavailable("No replica is running: all of them failed to start.", hint="The log says why.")
    return error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def _cause(message: str) -> str:
    """The sentence of our own within Ray's report of a replica that failed to start, else its first line."""
    ours = re.findall(r"service\.errors\.\w+: (.+)", message)
    return str(ours[-1]) if ours else (message.strip().splitlines() or ["no reason was given."])[0]

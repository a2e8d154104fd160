"""How large a cluster is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from service.errors import InvalidRequest


@dataclass(frozen=True)
class ClusterOptions:
    """How many replicas, and what each of them gets.

    Attributes:
        replicas: replicas at the start, and the fewest.
        max_replicas: most replicas; None for no autoscaling.
        cpus, gpus: reserved for each replica; also its threads, unless the settings say otherwise.
        pin: bind each replica of a machine to its own cores.
        gateways: processes between Ray's proxies and the engines; a stream ends with its gateway.
        routing: affinity, or random, which is what affinity is measured against.
        downscale_delay_s: quiet time before a replica, and its KV pages with it, is given up.
    """

    replicas: int = 1
    max_replicas: int | None = None
    cpus: int = 1
    gpus: float = 0.0
    pin: bool = False
    gateways: int = 1
    routing: Literal["affinity", "random"] = "affinity"
    downscale_delay_s: float = 600.0

    def __post_init__(self) -> None:
        if self.gateways < 1:
            raise InvalidRequest(f"A cluster has 1 or more gateways, not {self.gateways}.", param="gateways")
        if self.replicas < 1 or (self.max_replicas or self.replicas) < self.replicas:
            raise InvalidRequest(
                f"A cluster has 1 or more replicas, and at most no fewer: not {self.replicas} to {self.max_replicas}.",
                param="replicas",
            )

"""An `EngineReplica` as Ray Serve makes it: its name and its cores come from Ray."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from service.cluster.replica import EngineReplica
from service.logs import configure_logging
from service.settings import Settings


class Engine(EngineReplica):
    """The deployment `Engine`."""

    async def __init__(self, values: Mapping[str, Any], cpus: int, pin: bool) -> None:  # type: ignore[misc]
        from ray import serve

        context = serve.get_replica_context()
        settings = Settings(**values)
        configure_logging(settings.log_level, settings.log_json)
        if pin:
            _pin(context.rank.local_rank, cpus)
        super().__init__(settings, context.replica_id.unique_id)
        await self.start()

    async def __del__(self) -> None:  # Ray awaits it once the replica is drained
        await self.close()


def _pin(number: int, cpus: int) -> None:
    """Bind this process to its share of the cores it may run on."""
    cores = sorted(os.sched_getaffinity(0))
    mine = [cores[(number * cpus + i) % len(cores)] for i in range(cpus)]
    os.sched_setaffinity(0, mine)

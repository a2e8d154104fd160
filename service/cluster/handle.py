"""The engines behind a gateway, reached by a handle of Ray Serve. Imports no engine: a gateway is a small process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from starlette.types import ASGIApp, Message, Scope

from service.api.limits import BodyLimitMiddleware
from service.api.security import SecurityMiddleware
from service.cluster.gateway import LOST, Gateway
from service.errors import Busy, FolioError, ReplicaLost, Unavailable
from service.logs import configure_logging
from service.settings import Settings

ACCEPT_TIMEOUT_S = 30.0
"""Longest wait for a replica that takes a request: longer than a router takes to learn of new replicas."""
FIGURES_TIMEOUT_S = 5.0


def gateway_application(settings: Settings, app: str, deployment: str) -> ASGIApp:
    """The gateway to a deployment of engines, behind the same door as the application's own."""
    from ray import serve

    configure_logging(settings.log_level, settings.log_json)
    replicas = ServeReplicas(serve.get_deployment_handle(deployment, app_name=app))
    return SecurityMiddleware(BodyLimitMiddleware(Gateway(replicas), settings), settings)


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
                    accepted = await anext(response)
            except TimeoutError:
                raise Unavailable(
                    f"No replica took this request within {ACCEPT_TIMEOUT_S:.0f} s: all are starting, full or gone.",
                    hint="Try again later.",
                    retry_after=10,
                ) from None
            yield accepted
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

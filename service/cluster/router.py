"""Ray Serve's request router by our affinity. Imported by Ray alone, in the processes that hold a handle."""

from __future__ import annotations

from typing import Any

from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from service.cluster.affinity import POLICIES


class AffinityRouter(RequestRouter):
    """Sends a request to the replica that `affinity.Affinity` puts first and that has room.

    A replica's load is what this process has in flight there, or what the replica last reported where that is more:
    other gateways send too.
    """

    def initialize_state(self, policy: str = "affinity", **_: Any) -> None:
        """Called by Ray with `request_router_kwargs`."""
        self._policy = POLICIES[policy]()
        self._in_flight: set[tuple[str, str]] = set()

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """One rank a replica, the best first; Ray takes the first that is not full."""
        if pending_request is not None:
            pending_request.routing_context.should_backoff = True  # when all are full
        by_name = {replica.replica_id.unique_id: replica for replica in candidate_replicas}
        loads = {name: self._load(replica.replica_id) for name, replica in by_name.items()}
        key = pending_request.kwargs.get("key") if pending_request is not None else None
        return [[by_name[name]] for name in self._policy.order(key, loads)]

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any) -> None:
        self._in_flight.add((replica_id.unique_id, pending_request.metadata.internal_request_id))

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        self._in_flight.discard((replica_id.unique_id, internal_request_id))

    def on_replica_actor_died(self, replica_id: ReplicaID) -> None:
        super().on_replica_actor_died(replica_id)
        self._in_flight = {one for one in self._in_flight if one[0] != replica_id.unique_id}

    def _load(self, replica_id: ReplicaID) -> int:
        ours = sum(name == replica_id.unique_id for name, _ in self._in_flight)
        return max(ours, self.replica_queue_len_cache.get(replica_id) or 0)

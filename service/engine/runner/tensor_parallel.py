"""One model over several ranks: every rank runs the same steps over its share of the heads, rank 0 leads.

The weights are dealt out by transformers' own tensor-parallel plan of the model. Rank 0 has the scheduler and tells
the others, as plain data, each thing that touches the model or the pages: load, a forward, accepted nodes to move, the
end. All ranks then call the same `ModelRunner`, so their collectives meet. Logits are whole on every rank; rank 0 alone
chooses tokens. A pool holds the rank's own KV heads, so ``kv_memory`` is meant per rank.

A forward that fails on one rank leaves the others inside a collective, so it ends the group (`Ranks.fail`).
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from drafters.tree import DraftTree
from service.engine.block_manager import Place
from service.engine.config import EngineConfig
from service.engine.kv.layout import make_pool
from service.engine.loading.checkpoint import load_model
from service.engine.params import SamplingParams
from service.engine.request import Request
from service.engine.runner.model_runner import Forward, ModelRunner
from service.engine.runner.ranks import Ranks
from service.engine.step import Slice
from service.errors import ModelError
from sparse_attn.kv.pool import KVPool
from sparse_attn.plan.policy import ModelShape, Policy
from sparse_attn.plan.sharding import ShardedPolicy, shard_shape
from sparse_attn.plan.state import PolicyState


@dataclass(frozen=True)
class Load:
    """Load this model, and make the pool that the configuration says."""

    model: str
    config: EngineConfig


@dataclass(frozen=True)
class PlannedSlice:
    """What a rank must know of a `Slice` to run it; ``policy`` names a state of `Run.policies`."""

    start: int
    token_ids: list[int]
    samples: bool
    all_logits: bool
    hidden_rows: int
    targets: list[int]
    tree: DraftTree | None
    pages: list[Place]
    policy: int | None


@dataclass(frozen=True)
class Run:
    """One forward.

    Attributes:
        policies: states to begin, by number: the whole model's policy, its shape, the prompt's length.
        commits: (number, rows) of policy states whose rows of the last forward stay.
        ended: numbers of states that are not needed any more.
    """

    slices: list[PlannedSlice]
    policies: list[tuple[int, Policy, ModelShape, int]]
    commits: list[tuple[int, list[int]]]
    ended: list[int]


@dataclass(frozen=True)
class Call:
    """Another method of the runner, with its arguments."""

    method: str
    arguments: tuple[Any, ...]


class LeadingPolicyState(PolicyState):
    """A policy's state on rank 0, whose commits the other ranks repeat."""

    def __init__(
        self, policy: Policy, model: ModelShape, prompt_len: int, number: int, committed: Callable[[list[int]], None]
    ) -> None:
        super().__init__(policy, model, prompt_len)
        self.number = number
        self._committed = committed

    def commit(self, accepted: Sequence[int]) -> None:
        self._committed(list(accepted))
        super().commit(accepted)


class LeadingRunner(ModelRunner):
    """`ModelRunner` of rank 0: tells the other ranks what it is about to do, then does it with them."""

    def __init__(self, model: Any, pool: KVPool, ranks: Ranks, backend: str = "auto") -> None:
        super().__init__(model, pool, backend)
        self.ranks = ranks
        self._count = 0
        self._policies: list[tuple[int, Policy, ModelShape, int]] = []
        self._commits: list[tuple[int, list[int]]] = []
        self._ended: list[int] = []

    def run(self, slices: Sequence[Slice], pending: Tensor | None = None) -> Forward:
        assert pending is None
        plan = [_planned(part) for part in slices]
        self.ranks.tell(Run(plan, self._policies, self._commits, self._ended))
        self._policies, self._commits, self._ended = [], [], []
        return self._with_all(super().run, slices)

    def run_nodes(self, pages: Sequence[Place], length: int, tree: DraftTree, known: int) -> Tensor:
        return self._call("run_nodes", list(pages), length, tree, known)

    def keep_nodes(self, pages: Sequence[Place], length: int, path: Sequence[int]) -> None:
        if list(path) != list(range(len(path))):
            self._call("keep_nodes", list(pages), length, list(path))

    def keep_stats(self) -> None:
        if not self.pool.keeps_stats:
            self._call("keep_stats")

    def policy_state(self, policy: Policy, model: ModelShape, prompt_len: int) -> PolicyState:
        number, self._count = self._count, self._count + 1
        self._policies.append((number, policy, model, prompt_len))
        state = LeadingPolicyState(
            *_own_share(policy, model, self.ranks),
            prompt_len,
            number,
            lambda rows: self._commits.append((number, rows)),
        )
        weakref.finalize(state, self._ended.append, number).atexit = False
        return state

    def _call(self, method: str, *arguments: Any) -> Any:
        self.ranks.tell(Call(method, arguments))
        return self._with_all(getattr(super(), method), *arguments)

    def _with_all(self, work: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return work(*arguments)
        except Exception as error:
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            self.ranks.fail(f"a step failed on rank 0 of {self.ranks.size}, so the ranks end: {reason}")


def follow(ranks: Ranks) -> None:
    """Do what rank 0 tells, until it says that it is over.

    Raises:
        ModelError: rank 0 is gone, or its step failed here.
    """
    runner: FollowingRunner | None = None
    while True:
        try:
            message = ranks.hear()
        except RuntimeError as error:
            raise ModelError("rank 0 is gone; this rank ends too.") from error
        if message is None:
            return
        if isinstance(message, Load):
            runner = _load(message, ranks)
        elif runner is not None:
            runner.obey(message)


class FollowingRunner:
    """The runner of another rank than 0, and the policy states that it keeps beside rank 0's."""

    def __init__(self, runner: ModelRunner, ranks: Ranks) -> None:
        self.runner, self.ranks = runner, ranks
        self._states: dict[int, PolicyState] = {}

    def obey(self, message: Run | Call) -> None:
        """Take part in one forward, or call another method of the runner."""
        if isinstance(message, Call):
            getattr(self.runner, message.method)(*message.arguments)
            return
        for number, rows in message.commits:
            self._states[number].commit(rows)
        for number in message.ended:
            del self._states[number]
        for number, policy, model, prompt_len in message.policies:
            self._states[number] = PolicyState(*_own_share(policy, model, self.ranks), prompt_len)
        self.runner.run([self._slice(plan) for plan in message.slices])

    def _slice(self, plan: PlannedSlice) -> Slice:
        request = Request("", [0], SamplingParams())
        request.pages = plan.pages
        request.policy = self._states[plan.policy] if plan.policy is not None else None
        return Slice(
            request,
            plan.start,
            plan.token_ids,
            plan.samples,
            plan.tree,
            all_logits=plan.all_logits,
            hidden_rows=plan.hidden_rows,
            targets=plan.targets,
        )


def _planned(part: Slice) -> PlannedSlice:
    state = part.request.policy
    assert state is None or isinstance(state, LeadingPolicyState)
    number = state.number if state is not None else None
    return PlannedSlice(
        part.start,
        part.token_ids,
        part.samples,
        part.all_logits,
        part.hidden_rows,
        part.targets,
        part.tree,
        part.request.pages,
        number,
    )


def _own_share(policy: Policy, model: ModelShape, ranks: Ranks) -> tuple[Policy, ModelShape]:
    return ShardedPolicy.of(policy, model, ranks.rank, ranks.size), shard_shape(model, ranks.size)


def _load(message: Load, ranks: Ranks) -> FollowingRunner:
    config = message.config.model_copy(update={"device": ranks.device})
    loaded = load_model(message.model, config.dtype, config.device, config.max_model_len, ranks, config.weights)
    config = config.resolved(loaded.device, loaded.dtype)
    runner = ModelRunner(loaded.model, make_pool(loaded, config), config.backend)
    return FollowingRunner(runner, ranks)

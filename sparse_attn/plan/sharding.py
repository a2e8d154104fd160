"""A policy seen by one rank of a tensor-parallel group, which holds some of the heads of every layer.

transformers' plan gives each rank an equal, contiguous run of KV heads with their groups of query heads. What a head
visits depends on that head's queries and keys alone, so a rank plans for its own heads and nobody has to be asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from sparse_attn.errors import PolicyError
from sparse_attn.plan.patterns import Pattern
from sparse_attn.plan.policy import DecodeRule, ModelShape, Policy

_NONE, _NO_HEADS = Policy(), ModelShape(0, 0, 0, 0)


def shard_shape(model: ModelShape, size: int) -> ModelShape:
    """The heads of one of ``size`` ranks.

    Raises:
        PolicyError: the heads cannot be dealt out evenly.
    """
    if model.num_kv_heads % size or model.num_q_heads % size:
        raise PolicyError(
            f"{model.num_q_heads} query heads over {model.num_kv_heads} KV heads cannot be dealt out to {size} ranks"
        )
    return replace(model, num_q_heads=model.num_q_heads // size, num_kv_heads=model.num_kv_heads // size)


@dataclass(frozen=True)
class ShardedPolicy(Policy):
    """Another policy's patterns and rules for the heads of one rank.

    Attributes:
        whole: the policy of the whole model, resolved.
        model: the whole model's shape.
        rank, size: whose heads.
    """

    whole: Policy = _NONE
    model: ModelShape = _NO_HEADS
    rank: int = 0
    size: int = 1

    name: ClassVar[str] = "sharded"

    @classmethod
    def of(cls, whole: Policy, model: ModelShape, rank: int, size: int) -> ShardedPolicy:
        """``whole`` must be resolved: its choice by length is the same on every rank."""
        return cls(whole.gate, whole.block, whole, model, rank, size)

    def prefill(self, layer: int, model: ModelShape, prompt_len: int) -> Sequence[Pattern]:
        patterns = self.whole.prefill(layer, self.model, prompt_len)
        if len(patterns) <= 1:
            return patterns
        share = self.model.num_q_heads // self.size
        return patterns[self.rank * share : (self.rank + 1) * share]

    def decode(self, layer: int, model: ModelShape) -> DecodeRule | None:
        rule = self.whole.decode(layer, self.model)
        if rule is None:
            return None
        share = self.model.num_kv_heads // self.size
        first = self.rank * share
        own = tuple(head - first for head in rule.streaming if first <= head < first + share)
        return replace(rule, streaming=own)

    def skips(self, prefill: bool) -> tuple[float, int]:
        return self.whole.skips(prefill)

    @property
    def prefill_gate(self) -> int:
        return self.whole.prefill_gate

    @property
    def decode_gate(self) -> int:
        return self.whole.decode_gate

    def cache_key(self) -> str:
        return self.whole.cache_key()

"""Policies as data: which head of which layer attends to what, when.

A `Policy` says, per layer, what each query head visits in prefill (a `Pattern`) and what each KV head visits in decode
(a `DecodeRule`). What it keeps of one sequence is a `sparse_attn.plan.state.PolicyState`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from sparse_attn.errors import PolicyError
from sparse_attn.kv.head_groups import HeadGroups
from sparse_attn.plan.patterns import Pattern


@dataclass(frozen=True)
class ModelShape:
    """What a policy must know of a model before its weights are loaded.

    Attributes:
        page_size: tokens in a page of the KV pool.
        max_length: longest sequence the engine will hold, 0 for unknown.
        fingerprint: names the weights, to find head files that ship with the package; "" for unknown.
        checkpoint: its hub id or folder, by whose name published files are known.
    """

    num_layers: int
    num_q_heads: int
    num_kv_heads: int
    head_dim: int
    page_size: int = 64
    max_length: int = 0
    fingerprint: str = ""
    checkpoint: str = ""

    @classmethod
    def of_config(
        cls,
        config: Any,
        page_size: int = 64,
        max_length: int = 0,
        fingerprint: str = "",
        checkpoint: str = "",
    ) -> ModelShape:
        """From a transformers configuration of a decoder."""
        heads = config.num_attention_heads
        return cls(
            config.num_hidden_layers,
            heads,
            getattr(config, "num_key_value_heads", None) or heads,
            getattr(config, "head_dim", None) or config.hidden_size // heads,
            page_size,
            max_length,
            fingerprint,
            checkpoint,
        )


@dataclass(frozen=True)
class PageSelection:
    """Selecting pages by the bounds of their keys: tokens of ``budget`` a row, sinks and recent ones included.

    Attributes:
        interval: a selection serves this many positions (LServe's C).
        top_p: below 1, fewer pages where fewer hold this share of the estimated attention (Twilight).
    """

    budget: int
    sink: int
    recent: int
    interval: int
    top_p: float = 1.0

    def middle_pages(self, page_size: int) -> int:
        """Pages that are chosen by score, after sinks and the recent window are paid for."""
        forced = -(-self.sink // page_size) + -(-self.recent // page_size) + 1
        return self.budget // page_size - forced


@dataclass(frozen=True)
class DecodeRule:
    """What the KV heads of a layer visit in decode.

    Attributes:
        streaming: the heads that see the first ``sink`` and the last ``local`` tokens.
        selection: how the other heads choose pages; None for dense.
    """

    streaming: tuple[int, ...] = ()
    sink: int = 0
    local: int = 0
    selection: PageSelection | None = None

    @property
    def interval(self) -> int:
        return self.selection.interval if self.selection else 1


@dataclass(frozen=True)
class Policy:
    """Base of the named policies of `sparse_attn.plan.policies`; by itself it is dense attention.

    Attributes:
        gate: rows at positions below this are dense: sparse attention pays only beyond some length.
        block: rows a query block, and keys a scored block, of prefill; a multiple of the page size.
    """

    gate: int = 0
    block: int = 128

    name: ClassVar[str] = "dense"

    def check(self, model: ModelShape) -> None:
        """Refuse what this model or these pages do not allow, before weights are loaded.

        Raises:
            PolicyError: names the option and the remedy.
        """
        if self.gate < 0:
            raise PolicyError(f"{self.name}: gate={self.gate} must not be negative")
        if self.block <= 0 or self.block % model.page_size:
            raise PolicyError(f"{self.name}: block={self.block} must be a multiple of the page size {model.page_size}")

    def prefill(self, layer: int, model: ModelShape, prompt_len: int) -> Sequence[Pattern]:
        """The pattern of each query head, or of all where there is one; empty for dense."""
        return ()

    def decode(self, layer: int, model: ModelShape) -> DecodeRule | None:
        """What KV heads visit in decode; None for dense."""
        return None

    def skips(self, prefill: bool) -> tuple[float, int]:
        """What tiles of keys kernels may leave out: ``share`` and ``gate`` of `sparse_attn.kernels.operands.Skip`."""
        return 0.0, 0

    @property
    def prefill_gate(self) -> int:
        return self.gate

    @property
    def decode_gate(self) -> int:
        return self.gate

    def needs_page_stats(self, model: ModelShape) -> bool:
        """Does decode rank pages, so that the pool must keep `PageStats`?"""
        rules = (self.decode(layer, model) for layer in range(model.num_layers))
        return any(rule is not None and rule.selection is not None for rule in rules)

    def head_groups(self, model: ModelShape) -> HeadGroups | None:
        """The KV heads whose pages need not grow, or None where every head keeps every page."""
        return None

    def resolve(self, prompt_len: int, model: ModelShape) -> Policy:
        """The policy in force for a prompt of this length on this model: itself, but for `auto`."""
        return self

    def cache_key(self) -> str:
        """Names everything that changes K and V: pages of a prefix may be shared by equal keys only.

        Key it before `resolve`d policies differ: use the resolved policy's key.
        """
        options = ",".join(f"{f.name.rstrip('_')}={getattr(self, f.name)}" for f in fields(self) if f.init)
        return f"{self.name}:{options}"

    def is_dense(self, model: ModelShape, prompt_len: int | None = None, max_length: int | None = None) -> bool:
        """Never sparse, in no layer and phase; or never for a prompt and a sequence that grow no longer than this."""
        layers = range(model.num_layers)
        for prefill, length in ((True, prompt_len), (False, max_length)):
            share, gate = self.skips(prefill)
            if share and (length is None or length > gate):
                return False
        no_prefill = prompt_len is not None and prompt_len <= self.prefill_gate // self.block * self.block
        no_decode = max_length is not None and max_length <= self.decode_gate
        return all(
            (no_prefill or not self.prefill(n, model, 0)) and (no_decode or self.decode(n, model) is None)
            for n in layers
        )

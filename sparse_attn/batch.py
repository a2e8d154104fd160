"""What one forward pass tells every attention layer about the sequences it carries."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch

from sparse_attn.host_values import host_list, on_device, remember

if TYPE_CHECKING:
    from sparse_attn.kv.pool import KVPool
    from sparse_attn.plan.policy import PolicyState


@dataclass(frozen=True)
class EarlierNodes:
    """Nodes of a growing draft tree that lie in pages behind the context and that only some new rows may see.

    Attributes:
        slots: int64 [m], where their K and V lie.
        positions: int64 [m].
        visible: bool [n, m], by new row.
    """

    slots: torch.Tensor
    positions: torch.Tensor
    visible: torch.Tensor


@dataclass(frozen=True)
class GroupTables:
    """Where one head group of the pool has its pages: see the fields of the same names in `AttnBatch`.

    Attributes:
        earlier_slots: int64 [m], of `EarlierNodes`; None without.
    """

    block_tables: torch.Tensor
    slot_mapping: torch.Tensor
    earlier_slots: torch.Tensor | None = None


@dataclass
class AttnBatch:
    """A ragged batch: S sequences, T new tokens in all, one paged context each.

    The new tokens of sequence ``s`` are rows ``cu_seqlens_q[s]:cu_seqlens_q[s+1]``. Its context, the tokens
    whose keys and values already lie in pages, are positions ``0:context_lens[s]``; position ``p`` of it lies in
    page ``block_tables[s, p // page_size]`` at offset ``p % page_size``.

    Attributes:
        pool: the pages of every layer.
        cu_seqlens_q: int32 [S+1], cumulative counts of new tokens.
        context_lens: int32 [S], tokens in pages before this forward.
        block_tables: int32 [S, P], page numbers, rows padded with 0.
        slot_mapping: int64 [T], ``page * page_size + offset`` where a new token's K and V are written; -1: nowhere.
        positions: int64 [T], position of each new token in its sequence (a tree node: root's position + depth).
        tree_masks: per sequence a bool [n, n] ancestor-or-self mask over its new tokens, or None for causal;
            the whole field is None where no sequence carries a tree.
        policies: per sequence the state of its sparse policy, or None for dense; the whole field is None where
            every sequence is dense.
        earlier: for a batch of one sequence, the nodes of its tree that an earlier forward has run.
        other_groups: the tables of the pool's further head groups, where heads of unequal lifetimes have pages of
            their own (`HeadLayout`); block_tables, slot_mapping and earlier are of the first group.
        backend: who attends long dense runs of rows (`sparse_attn.kernels.BACKENDS`).
        needed: per sequence, of how many of its last rows the model's output is read; None for all rows of all.
        kernels: names of the kernels that served this forward, for the statistics; layers add to it.
        plans: what `sparse_attn.plan.decode_plan` keeps from layer to layer of this forward.
    """

    pool: KVPool
    cu_seqlens_q: torch.Tensor
    context_lens: torch.Tensor
    block_tables: torch.Tensor
    slot_mapping: torch.Tensor
    positions: torch.Tensor
    tree_masks: Sequence[torch.Tensor | None] | None = None
    policies: Sequence[PolicyState | None] | None = None
    earlier: EarlierNodes | None = None
    other_groups: Sequence[GroupTables] = ()
    backend: str = "auto"
    needed: Sequence[int] | None = None
    kernels: set[str] = field(default_factory=set)
    plans: dict[Any, Any] = field(default_factory=dict)

    @property
    def num_sequences(self) -> int:
        return len(self.context_lens)

    @property
    def tables(self) -> list[GroupTables]:
        """The tables of every head group of the pool, in order."""
        earlier = self.earlier.slots if self.earlier is not None else None
        return [GroupTables(self.block_tables, self.slot_mapping, earlier), *self.other_groups]

    def select(self, s: int) -> AttnBatch:
        """The same forward seen by sequence ``s`` alone; its rows are ``rows(s)`` of the whole batch."""
        rows = self.rows(s)
        return AttnBatch(
            pool=self.pool,
            cu_seqlens_q=on_device([0, rows.stop - rows.start], torch.int32, self.cu_seqlens_q.device),
            context_lens=remember(self.context_lens[s : s + 1], host_list(self.context_lens)[s : s + 1]),
            block_tables=self.block_tables[s : s + 1],
            slot_mapping=self.slot_mapping[rows],
            positions=self.positions[rows],
            tree_masks=self.tree_masks[s : s + 1] if self.tree_masks is not None else None,
            policies=[self.policies[s]] if self.policies is not None else None,
            other_groups=[
                GroupTables(own.block_tables[s : s + 1], own.slot_mapping[rows]) for own in self.other_groups
            ],
            backend=self.backend,
            kernels=self.kernels,
        )

    def last_rows(self, counts: Sequence[int]) -> tuple[AttnBatch, torch.Tensor]:
        """The last ``counts[s]`` rows of each sequence as a batch of their own, to which the rows before are context.

        Their K and V must be in pages already. Returns the batch, without sequences of 0 rows, and int64 [n], which
        rows of this batch are its.
        """
        device, bounds, lengths = self.cu_seqlens_q.device, host_list(self.cu_seqlens_q), host_list(self.context_lens)
        kept = [s for s, count in enumerate(counts) if count]
        ends = [bounds[s + 1] for s in kept]
        rows = on_device([r for s, end in zip(kept, ends, strict=True) for r in range(end - counts[s], end)],
                         torch.int64, device)  # fmt: skip
        starts = list(itertools.accumulate((counts[s] for s in kept), initial=0))
        before = [lengths[s] + end - counts[s] - bounds[s] for s, end in zip(kept, ends, strict=True)]
        masks = None
        if self.tree_masks is not None:
            every = [self.tree_masks[s] for s in kept]
            masks = [m if m is None else m[-counts[s] :, -counts[s] :] for s, m in zip(kept, every, strict=True)]
        return replace(
            self,
            cu_seqlens_q=on_device(starts, torch.int32, device),
            context_lens=on_device(before, torch.int32, device),
            block_tables=self.block_tables[kept],
            slot_mapping=self.slot_mapping[rows],
            positions=self.positions[rows],
            tree_masks=masks,
            policies=[self.policies[s] for s in kept] if self.policies is not None else None,
            other_groups=[GroupTables(own.block_tables[kept], own.slot_mapping[rows]) for own in self.other_groups],
            needed=None,
        ), rows  # fmt: skip

    def rows(self, s: int) -> slice:
        """The rows of sequence ``s`` among the T new tokens."""
        bounds = host_list(self.cu_seqlens_q)
        return slice(bounds[s], bounds[s + 1])

"""What one forward pass tells every attention layer about the sequences it carries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from sparse_attn.kv_pool import KVPool
    from sparse_attn.policy import PolicyState


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
        kernels: names of the kernels that served this forward, for the statistics; layers add to it.
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
    kernels: set[str] = field(default_factory=set)

    @property
    def num_sequences(self) -> int:
        return len(self.context_lens)

    def select(self, s: int) -> AttnBatch:
        """The same forward seen by sequence ``s`` alone; its rows are ``rows(s)`` of the whole batch."""
        rows = self.rows(s)
        return AttnBatch(
            pool=self.pool,
            cu_seqlens_q=torch.tensor([0, rows.stop - rows.start], dtype=torch.int32, device=self.cu_seqlens_q.device),
            context_lens=self.context_lens[s : s + 1],
            block_tables=self.block_tables[s : s + 1],
            slot_mapping=self.slot_mapping[rows],
            positions=self.positions[rows],
            tree_masks=[self.tree_masks[s]] if self.tree_masks is not None else None,
            policies=[self.policies[s]] if self.policies is not None else None,
            kernels=self.kernels,
        )

    def rows(self, s: int) -> slice:
        """The rows of sequence ``s`` among the T new tokens."""
        return slice(int(self.cu_seqlens_q[s]), int(self.cu_seqlens_q[s + 1]))

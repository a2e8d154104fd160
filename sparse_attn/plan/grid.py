"""The blocks of rows and of keys that prefill patterns choose among."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from sparse_attn.blocks import query_blocks
from sparse_attn.rows import SequenceRows


@dataclass(frozen=True)
class Grid:
    """The query blocks of one sequence's new rows against its key blocks.

    Attributes:
        block_q, block_k: rows and keys a block.
        context_len, num_rows: as in `SequenceRows`.
    """

    block_q: int
    block_k: int
    context_len: int
    num_rows: int
    device: torch.device

    @classmethod
    def of(cls, rows: SequenceRows, block_q: int, block_k: int) -> Grid:
        return cls(block_q, block_k, rows.context_len, rows.num_rows, rows.q.device)

    @cached_property
    def last(self) -> Tensor:
        """int64 [N]: position of each query block's last row."""
        return query_blocks([self.num_rows], [self.context_len], self.block_q, self.device)[2]

    @cached_property
    def start(self) -> Tensor:
        """int64 [N]: where each query block begins on the absolute grid, however the prompt is cut."""
        return self.last // self.block_q * self.block_q

    @property
    def num_query_blocks(self) -> int:
        return len(self.last)

    @property
    def num_key_blocks(self) -> int:
        return -(-(self.context_len + self.num_rows) // self.block_k)

    @cached_property
    def key_blocks(self) -> Tensor:
        """int64 [K]: 0 … K-1."""
        return torch.arange(self.num_key_blocks, device=self.device)

    @cached_property
    def causal(self) -> Tensor:
        """bool [N, K]: key blocks that begin at or before the query block's last row."""
        return self.key_blocks <= (self.last // self.block_k)[:, None]

    def keep(self, sink: int, local: int) -> Tensor:
        """bool [N, K]: blocks with one of the first ``sink`` keys, or of the ``local`` keys up to any row."""
        first_local = (self.start - local + 1).clamp(min=0) // self.block_k
        sinks = self.key_blocks * self.block_k < sink
        return self.causal & (sinks | (self.key_blocks >= first_local[:, None]))

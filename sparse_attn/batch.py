"""What one forward pass tells every attention layer about the sequences it carries."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import torch

from sparse_attn.host_values import host_list, on_device, remember
from sparse_attn.kernels.operands import Pages, Rows

if TYPE_CHECKING:
    from sparse_attn.kv.page_stats import PageStats
    from sparse_attn.kv.pool import KVPool
    from sparse_attn.plan.state import PolicyState


class ForwardEnded(Exception):
    """A forward came to the layer that it was run for (`AttnBatch.ends_at`)."""


@dataclass(frozen=True)
class GroupTables:
    """Where one head group of the pool has the pages of S sequences, and takes their T new tokens.

    Attributes:
        block_tables: int32 [S, P], page numbers, rows padded with 0; position ``p`` of a context lies in page
            ``block_tables[s, p // page_size]`` at offset ``p % page_size``.
        slot_mapping: int64 [T], ``page * page_size + offset`` where a new token's K and V are written; -1: nowhere.
    """

    block_tables: torch.Tensor
    slot_mapping: torch.Tensor


@dataclass(frozen=True)
class EarlierNodes:
    """Nodes of a growing draft tree that lie in pages behind the context and that only some new rows may see.

    Attributes:
        slots: of each head group int64 [m], where their K and V lie.
        positions: int64 [m].
        visible: bool [n, m], by new row.
    """

    slots: Sequence[torch.Tensor]
    positions: torch.Tensor
    visible: torch.Tensor


class SelectsPages(Protocol):
    """Page selection within a captured step (`sparse_attn.plan.graph_selection`)."""

    def selects(self, layer: int, window: int) -> bool:
        """Whether a layer of this window is sparse."""

    def attend(self, layer: int, pages: Pages, stats: PageStats | None, rows: Rows) -> torch.Tensor:
        """The rows of a sparse layer over the pages that they visit: [T, Hq, D]."""


@dataclass
class AttnBatch:
    """A ragged batch: S sequences, T new tokens in all, one paged context each.

    The new tokens of sequence ``s`` are rows ``cu_seqlens[s]:cu_seqlens[s+1]``. Its context, the tokens
    whose keys and values already lie in pages, are positions ``0:context_lens[s]``.

    What the layers need of it is made once, when the first of them asks, and kept here: so the tensors must not change
    afterwards, unless every layer is dense for all rows (as in the buffers of a CUDA graph).

    Attributes:
        pool: the pages of every layer.
        cu_seqlens: int32 [S+1], cumulative counts of new tokens.
        context_lens: int32 [S], tokens in pages before this forward.
        tables: of each head group of the pool (`HeadLayout`), where its pages are.
        positions: int64 [T], position of each new token in its sequence (a tree node: root's position + depth).
        tree_masks: per sequence a bool [n, n] ancestor-or-self mask over its new tokens, or None for causal;
            the whole field is None where no sequence carries a tree.
        policies: per sequence the state of its sparse policy, or None for dense; the whole field is None where
            every sequence is dense.
        earlier: for a batch of one sequence, the nodes of its tree that an earlier forward has run.
        backend: who attends long dense runs of rows (`sparse_attn.kernels.BACKENDS`).
        needed: per sequence, of how many of its last rows the model's output is read; None for all rows of all.
        decode_only: every sequence decodes, densely: so nobody need look at lengths that change with each replay.
        ends_at: the layer whose keys and values are all that is wanted; the forward then ends in `ForwardEnded`.
        selection: what sparse layers of a captured step visit; every layer is dense without.
        instead: what each layer calls in place of `sparse_attn.backend.attend_layer`, with its arguments.
        kernels: names of the kernels that served this forward, for the statistics; layers add to it.
        kept: what kernels and policies prepare once for this forward.
    """

    pool: KVPool
    cu_seqlens: torch.Tensor
    context_lens: torch.Tensor
    tables: Sequence[GroupTables]
    positions: torch.Tensor
    tree_masks: Sequence[torch.Tensor | None] | None = None
    policies: Sequence[PolicyState | None] | None = None
    earlier: EarlierNodes | None = None
    backend: str = "auto"
    needed: Sequence[int] | None = None
    decode_only: bool = False
    ends_at: int | None = None
    selection: SelectsPages | None = None
    instead: Callable[..., torch.Tensor] | None = None
    kernels: set[str] = field(default_factory=set)
    kept: dict[Any, Any] = field(default_factory=dict, init=False)

    @property
    def num_sequences(self) -> int:
        return len(self.context_lens)

    @cached_property
    def bounds(self) -> list[int]:
        """The values of ``cu_seqlens``."""
        return host_list(self.cu_seqlens)

    @cached_property
    def lengths(self) -> list[int]:
        """The values of ``context_lens``."""
        return host_list(self.context_lens)

    @cached_property
    def host_positions(self) -> list[int]:
        """The values of ``positions``."""
        return host_list(self.positions)

    def rows(self, s: int) -> slice:
        """The rows of sequence ``s`` among the T new tokens."""
        return slice(self.bounds[s], self.bounds[s + 1])

    def operands(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, softcap: float = 0.0, window: int = 0
    ) -> Rows:
        """The new tokens in one layer, as kernels take them: q [T, Hq, D], k, v [T, Hkv, D]."""
        where = (self.cu_seqlens, self.context_lens)
        return Rows(q, k, v, *where, scale, softcap, window, self.positions, self.tree_masks, kept=self.kept)

    def take(self, rows: Rows, at: slice | torch.Tensor) -> Rows:
        """The operands of this batch, which is the rows ``at`` of a larger one, whose operands are ``rows``."""
        q, k, v = (x[at] for x in (rows.q, rows.k, rows.v))
        taken = self.operands(q, k, v, rows.scale, rows.softcap, rows.window)
        taken.skip = rows.skip
        return taken

    @cached_property
    def sequences(self) -> list[AttnBatch]:
        """The same forward seen by each sequence alone; its rows are ``rows(s)`` of the whole batch."""
        return [self] if self.num_sequences == 1 else [self._alone(s) for s in range(self.num_sequences)]

    def _alone(self, s: int) -> AttnBatch:
        return self._of(s, s + 1)

    def runs(self, alike: Callable[[int], Hashable]) -> list[tuple[int, int]]:
        """Neighbouring sequences for which ``alike`` (of a sequence's number) gives the same: (first, end) of each."""
        grouped = (list(run) for _, run in itertools.groupby(range(self.num_sequences), alike))
        return [(run[0], run[-1] + 1) for run in grouped]

    def span(self, first: int, end: int) -> AttnBatch:
        """The sequences ``first:end`` as a batch of their own; made once."""
        if (first, end) == (0, self.num_sequences):
            return self
        at = (AttnBatch.span, first, end)
        if at not in self.kept:
            self.kept[at] = self._of(first, end)
        batch: AttnBatch = self.kept[at]
        return batch

    def _of(self, first: int, end: int) -> AttnBatch:
        """The sequences ``first:end`` as a batch of their own."""
        rows = slice(self.bounds[first], self.bounds[end])
        starts = [bound - rows.start for bound in self.bounds[first : end + 1]]
        return replace(
            self,
            cu_seqlens=on_device(starts, torch.int32, self.cu_seqlens.device),
            context_lens=remember(self.context_lens[first:end], self.lengths[first:end]),
            tables=[GroupTables(own.block_tables[first:end], own.slot_mapping[rows]) for own in self.tables],
            positions=self.positions[rows],
            tree_masks=self.tree_masks[first:end] if self.tree_masks is not None else None,
            policies=self.policies[first:end] if self.policies is not None else None,
            needed=None,
        )

    def last_rows(self, counts: Sequence[int]) -> tuple[AttnBatch, torch.Tensor]:
        """The last ``counts[s]`` rows of each sequence as a batch of their own, to which the rows before are context.

        Their K and V must be in pages already. Returns the batch, without sequences of 0 rows, and int64 [n], which
        rows of this batch are its.
        """
        device = self.cu_seqlens.device
        kept = [s for s, count in enumerate(counts) if count]
        ends = [self.bounds[s + 1] for s in kept]
        rows = on_device([r for s, end in zip(kept, ends, strict=True) for r in range(end - counts[s], end)],
                         torch.int64, device)  # fmt: skip
        starts = list(itertools.accumulate((counts[s] for s in kept), initial=0))
        before = [self.lengths[s] + end - counts[s] - self.bounds[s] for s, end in zip(kept, ends, strict=True)]
        masks = None
        if self.tree_masks is not None:
            every = [self.tree_masks[s] for s in kept]
            masks = [m if m is None else m[-counts[s] :, -counts[s] :] for s, m in zip(kept, every, strict=True)]
        return replace(
            self,
            cu_seqlens=on_device(starts, torch.int32, device),
            context_lens=on_device(before, torch.int32, device),
            tables=[GroupTables(own.block_tables[kept], own.slot_mapping[rows]) for own in self.tables],
            positions=self.positions[rows],
            tree_masks=masks,
            policies=[self.policies[s] for s in kept] if self.policies is not None else None,
            needed=None,
        ), rows  # fmt: skip

    @cached_property
    def with_earlier(self) -> AttnBatch:
        """A growing tree alone: its earlier nodes as rows before the new ones, without the context in pages."""
        assert self.earlier is not None
        device, (new, known) = self.cu_seqlens.device, self.earlier.visible.shape
        mask = torch.ones(known + new, known + new, dtype=torch.bool, device=device).tril()
        mask[known:, :known] = self.earlier.visible
        if self.tree_masks is not None and self.tree_masks[0] is not None:
            mask[known:, known:] = self.tree_masks[0]
        return replace(
            self,
            cu_seqlens=on_device([0, known + new], torch.int32, device),
            context_lens=on_device([0], torch.int32, device),
            positions=torch.cat([self.earlier.positions, self.positions]),
            tree_masks=[mask],
            earlier=None,
        )

    @cached_property
    def present_pages(self) -> list[torch.Tensor] | None:
        """Of each head group bool [S, P], the pages that have not been freed; None where all are there."""
        present = [own.block_tables != self.pool.num_pages for own in self.tables]
        return None if all(bool(pages.all()) for pages in present) else present

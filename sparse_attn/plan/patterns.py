"""The patterns of prefill: for some query heads of one layer, which blocks of keys each block of rows visits.

A pattern is a small frozen record of numbers. `visit` answers in blocks, bool [heads, N, K], sinks and the recent
window included; the policy joins the heads, applies gates and windows and makes the `BlockIndex`. Lengths are in
tokens and are rounded up to blocks, so that a pattern costs what its numbers say.

`static` patterns depend on positions alone, so a prompt cut into chunks gives exactly the index of the whole;
`grouped` ones give all heads the same blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from sparse_attn.plan import score
from sparse_attn.plan.grid import Grid
from sparse_attn.plan.select import top_k, top_p
from sparse_attn.rows import SequenceRows

# MInference (section 3.2 and its code): columns and diagonals that every vertical-slash head keeps.
SINK_COLUMNS, RECENT_DIAGONALS = 30, 100


class Pattern(Protocol):
    """What a group of query heads visits in prefill."""

    static: ClassVar[bool]
    grouped: ClassVar[bool]

    def visit(self, rows: SequenceRows, grid: Grid, heads: Sequence[int]) -> Tensor:
        """bool [len(heads), N, K]."""
        ...


@dataclass(frozen=True)
class Dense:
    """Every key."""

    static: ClassVar[bool] = True
    grouped: ClassVar[bool] = True

    def visit(self, rows: SequenceRows, grid: Grid, heads: Sequence[int]) -> Tensor:
        return grid.causal.expand(len(heads), -1, -1)


@dataclass(frozen=True)
class AShape:
    """The first ``sink`` keys and the last ``local`` (StreamingLLM, arXiv 2309.17453; MInference's A-shape)."""

    sink: int = 128
    local: int = 4096
    static: ClassVar[bool] = True
    grouped: ClassVar[bool] = True

    def visit(self, rows: SequenceRows, grid: Grid, heads: Sequence[int]) -> Tensor:
        return grid.keep(self.sink, self.local).expand(len(heads), -1, -1)


@dataclass(frozen=True)
class TriShape:
    """A-shape, and every key for rows from position ``dense_from`` on (TriangleMix, arXiv 2507.21526, section 3).

    The last rows of a prompt carry the question; `TriangleMix` sets ``dense_from`` from the prompt's length.
    """

    sink: int = 8
    local: int = 512
    dense_from: int = 0
    static: ClassVar[bool] = True
    grouped: ClassVar[bool] = True

    def visit(self, rows: SequenceRows, grid: Grid, heads: Sequence[int]) -> Tensor:
        full = grid.causal & (grid.start + grid.block_q > self.dense_from)[:, None]
        return (grid.keep(self.sink, self.local) | full).expand(len(heads), -1, -1)


@dataclass(frozen=True)
class VerticalSlash:
    """Columns and diagonals that the last rows attend to most (MInference, section 3.2), in whole blocks.

    Attributes:
        vertical, slash: keys in columns and in diagonals that a row visits.
    """

    vertical: int = 1000
    slash: int = 6096
    static: ClassVar[bool] = False
    grouped: ClassVar[bool] = False

    def visit(self, rows: SequenceRows, grid: Grid, heads: Sequence[int]) -> Tensor:
        return self.choose(self.weigh(rows, grid, heads), grid)

    @staticmethod
    def weigh(rows: SequenceRows, grid: Grid, heads: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Share of attention on each block of columns and each block diagonal, [h, K] each."""
        return score.vertical_slash(rows, heads, grid.block_k)

    def choose(self, weights: tuple[Tensor, Tensor], grid: Grid) -> Tensor:
        """What `weigh` found → bool [h, N, K]."""
        sinks = grid.key_blocks * grid.block_k < SINK_COLUMNS
        columns = top_k(weights[0], -(-self.vertical // grid.block_k), forced=sinks)
        diagonals = top_k(weights[1], -(-self.slash // grid.block_k), forced=_recent_diagonals(grid))
        return _columns_and_diagonals(columns, diagonals, grid)


@dataclass(frozen=True)
class BlockTopK:
    """The ``blocks`` key blocks of largest mean-query · mean-key (MInference's block-sparse heads)."""

    blocks: int = 100
    sink: int = 64
    local: int = 64
    static: ClassVar[bool] = False
    grouped: ClassVar[bool] = False

    def visit(self, rows: SequenceRows, grid: Grid, heads: Sequence[int]) -> Tensor:
        return self.choose(self.weigh(rows, grid, heads), grid)

    @staticmethod
    def weigh(rows: SequenceRows, grid: Grid, heads: Sequence[int]) -> Tensor:
        """Pooled attention [h, N, K]."""
        return score.pooled(rows, grid, heads)

    def choose(self, weights: Tensor, grid: Grid) -> Tensor:
        """What `weigh` found → bool [h, N, K]."""
        weights = weights.masked_fill(~grid.causal, -torch.inf)
        return top_k(weights, self.blocks, forced=grid.keep(self.sink, self.local))


@dataclass(frozen=True)
class AntiDiagonal:
    """The fewest blocks that hold a share ``p`` of the attention, by antidiagonal sums (XAttention).

    Attributes:
        stride: keys and queries of a scored tile.
        sink, local: first keys, and last keys of a row, that are kept in any case.
        share: one choice for the query heads of a KV head, from the sum of their weights, so that a kernel reads
            each block once for the whole group.
        means: score tiles by the product of their means instead, for a fraction of the cost (`score.tile_means`).
    """

    stride: int = 16
    p: float = 0.9
    sink: int = 128
    local: int = 128
    share: bool = False
    means: bool = False
    static: ClassVar[bool] = False
    grouped: ClassVar[bool] = False

    def visit(self, rows: SequenceRows, grid: Grid, heads: Sequence[int]) -> Tensor:
        estimate = score.tile_means if self.means else score.antidiagonal
        weights = estimate(rows, grid, self.stride, heads)
        keep = grid.keep(self.sink, self.local)
        group = rows.q.shape[1] // rows.k.shape[1]
        if self.share and len(heads) == rows.q.shape[1]:
            shared = weights.unflatten(0, (-1, group)).sum(1)
            return top_p(shared, self.p, forced=keep)
        return top_p(weights, self.p, forced=keep)


@dataclass(frozen=True)
class Coverage:
    """FlexPrefill (arXiv 2502.20766, algorithm 1): each head decides at run time, without calibration.

    A head whose pooled estimate for the last rows is near the truth takes pooled blocks; any other takes columns and
    diagonals.

    Attributes:
        gamma: the share of weight up to which they are taken.
        tau: what counts as near: the root of the Jensen-Shannon divergence is below.
        minimum: keys a row that are kept at least.
        sink, local: first keys, and last keys of a row, that are kept in any case.
    """

    gamma: float = 0.9
    tau: float = 0.1
    minimum: int = 1024
    sink: int = 64
    local: int = 64
    static: ClassVar[bool] = False
    grouped: ClassVar[bool] = False

    def visit(self, rows: SequenceRows, grid: Grid, heads: Sequence[int]) -> Tensor:
        vertical, slash = score.vertical_slash(rows, heads, grid.block_k)
        floor = -(-self.minimum // grid.block_k)
        sinks = grid.key_blocks * grid.block_k < self.sink
        columns = top_p(vertical, self.gamma, forced=sinks) | top_k(vertical, floor // 2)
        diagonals = top_p(slash, self.gamma, forced=_recent_diagonals(grid)) | top_k(slash, floor // 2)
        visited = _columns_and_diagonals(columns, diagonals, grid)

        estimate = score.pooled(rows, grid, heads)
        near = _jensen_shannon(estimate[:, -1], vertical).sqrt() < self.tau
        by_pool = top_p(estimate, self.gamma, forced=grid.keep(self.sink, self.local)) | (
            top_k(estimate, floor) & grid.causal
        )
        return torch.where(near[:, None, None], by_pool, visited) | grid.keep(self.sink, self.local)


def _recent_diagonals(grid: Grid) -> Tensor:
    """bool [K]: block diagonals that hold one of the last RECENT_DIAGONALS distances."""
    return grid.key_blocks < RECENT_DIAGONALS // grid.block_k + 2


def _columns_and_diagonals(columns: Tensor, diagonals: Tensor, grid: Grid) -> Tensor:
    """columns bool [h, K], diagonals bool [h, K] (by distance in blocks) → bool [h, N, K]."""
    parts = max(1, grid.block_q // grid.block_k)
    row_blocks = grid.start[:, None] // grid.block_k + torch.arange(parts, device=columns.device)  # [N, parts]
    distance = row_blocks[..., None] - grid.key_blocks  # [N, parts, K]; negative in the future
    known = F.pad(diagonals, (0, parts + 1))  # distances beyond the last block row of a part-filled query block
    on_diagonal = known[:, distance.clamp(min=0)] & (distance >= 0)
    return (on_diagonal.any(2) | columns[:, None]) & grid.causal


def _jensen_shannon(p: Tensor, q: Tensor) -> Tensor:
    """Divergence of distributions [..., K] in nats, 0 to ln 2."""
    mean = (p + q) / 2
    return sum(torch.special.xlogy(x, x / mean.clamp(min=1e-30)).sum(-1) for x in (p, q)).clamp(min=0) / 2  # type: ignore[union-attr]

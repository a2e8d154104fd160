"""How dense rows over pages are cut where the bits of a row must not depend on the rows beside it.

Every tile has the same shape and a sequence's keys are cut at the same places whatever there is to do: into shares of
`SHARE_KEYS`, counted from its first key (the fixed split size of batch-invariant attention, Thinking Machines 2025). A
row's result is its shares' results, merged one after the other. Whether one program goes through them or each has its
own is then a matter of speed alone, and is decided by how many tiles there are.

A node of a draft tree sees its ancestors among other nodes. From the share of the first new key on each node is a tile
by itself, which reads the keys in the order in which they would lie if its path had been decoded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sparse_attn.kernels.work import FIELDS, PROGRAMS, Tiling, Work, within

SHARE_KEYS = 2048
MOST_SPLIT = 1024  # items of a launch beside one for each tile
MOST_OF_TREE = 128  # rows of a sequence with a draft tree


@dataclass(frozen=True)
class FixedTiling(Tiling):
    """The one tiling of a model's invariant attention, for decode, draft trees and chunks alike."""

    @classmethod
    def of_model(cls, num_heads: int, kv_heads: int, page_size: int) -> FixedTiling:
        """Tiles of 64 rows: a row and the heads that share its KV head, as often as they fit."""
        group = num_heads // kv_heads
        shared = next(n for n in range(min(group, 64), 0, -1) if group % n == 0)
        return cls(64, shared, num_heads // shared, True, page_size)

    @property
    def share(self) -> int:
        """Pages of a share."""
        return max(1, SHARE_KEYS // self.page_size)

    def most_items(self, rows: int, sequences: int, pages: int) -> int:
        """As `Tiling.most_items`."""
        tiles = self.most_tiles(rows, sequences)
        of_trees = 2 * rows if rows > sequences else 0  # a tree crosses one border of shares at most
        return tiles + min(MOST_SPLIT, tiles * -(-pages // self.share)) + of_trees

    def most_parts(self, rows: int, sequences: int, pages: int) -> int:
        """As `Tiling.most_parts`."""
        tiles = self.most_tiles(rows, sequences)
        return (3 * tiles + min(MOST_SPLIT, tiles * -(-pages // self.share))) * min(rows, self.positions)

    def plan(self, bounds: Sequence[int], contexts: Sequence[int], trees: Sequence[int]) -> Work:
        """As `Tiling.plan`; of an item, ``share`` is the first of ``shares`` that it goes through in turn."""
        edges, before, masks = (np.asarray(values, dtype=np.int64) for values in (bounds, contexts, trees))
        lengths = np.diff(edges)
        seq, local, rows = self.tiles(lengths)
        every = np.arange(len(seq))
        context, tree, keys = before[seq], masks[seq] >= 0, self.share * self.page_size
        ends = context + local + rows  # of what the last row sees
        common = np.where(tree, context // keys, -(-ends // keys))  # shares that are read for all rows of a tile
        alone = np.where(tree, (ends - 1) // keys - common + 1, 0)  # those that a node reads by itself, its last one
        split = self._split(common)
        steps = np.where(split, common, np.minimum(common, 1))  # items that go through the common shares
        slots = steps + alone
        slots[slots == 1] = 0  # all rows come in one part, which is the result
        first_part = np.cumsum(slots * rows) - slots * rows

        def items(
            tile: np.ndarray, row: Any, count: Any, shares: Any, slot: np.ndarray, pages: Any, mask: Any, parts: Any
        ) -> Any:
            part = np.where(parts > 1, first_part[tile] + slot * rows[tile] + row, -1)
            share = np.where(slot < steps[tile], slot, common[tile] + slot - steps[tile])
            columns = (
                *(edges[seq[tile]] + local[tile] + row, count, seq[tile], pages, share, shares, part),
                *(context[tile], local[tile] + row, lengths[seq[tile]], mask),
            )
            return np.stack(np.broadcast_arrays(*columns), 1)

        tile = np.repeat(every, steps)
        pages = np.where(tree, common * self.share, -(-ends // self.page_size))
        together = items(
            tile, 0, rows[tile], np.where(split, 1, common)[tile], within(steps), pages[tile], -1, slots[tile]
        )
        of_row, row = np.repeat(every, rows), within(rows)
        ends = context[of_row] + local[of_row] + row + 1
        reached = np.where(tree[of_row], (ends - 1) // keys - common[of_row] + 1, 0)
        counts = steps[of_row] + reached
        node = np.repeat(np.arange(len(of_row)), reached)
        tile = of_row[node]
        apart = items(
            *(tile, row[node], 1, 1, steps[tile] + within(reached)),
            *(-(-ends[node] // self.page_size), masks[seq[tile]], counts[node]),
        )
        found = np.concatenate([together, apart])
        found = found[np.argsort(-found[:, FIELDS.index("shares")], kind="stable")]  # the longest first
        joins = np.zeros((int(edges[-1]), 3), dtype=np.int32)
        joins[edges[seq[of_row]] + local[of_row] + row] = np.stack([first_part[of_row] + row, rows[of_row], counts], 1)
        return Work(found.astype(np.int32), joins, int((slots * rows).sum()))

    def _split(self, common: np.ndarray) -> np.ndarray:
        """Of which tiles each share is a program's own: none where there are tiles enough, else the longest first."""
        split = np.zeros(len(common), dtype=bool)
        if len(common) * self.heads < PROGRAMS // 2:
            order = np.argsort(-common, kind="stable")
            split[order] = np.cumsum(np.maximum(common[order] - 1, 0)) <= MOST_SPLIT
        return split

"""How dense rows over pages are cut into programs of a GPU: planned on the host, once a forward, from lengths alone.

A tile is some rows of one sequence with the heads that share a KV head. Its keys are cut into shares, so that one long
context keeps the whole GPU busy and a long one beside short ones is cut more often than they are. The shares' length is
found by bisection: the shortest under which there are no more programs than wanted (FlashInfer, arXiv 2501.01005,
section 3.3.1). Parts of a row are joined by log-sum-exp afterwards (Flash-Decoding).

What is planned are numbers of items, not shapes: a captured graph launches as many programs as its bucket may need and
reads the items of the step from a buffer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

PREFILL_ROWS = 128
"""New rows from which a sequence is a prompt's chunk, whose tiles hold one head; fewer are decode or a draft."""
PROGRAMS = 528  # wanted before splitting stops: 4 for each of a Hopper GPU's 132 multiprocessors
SHARE_KEYS = 512  # fewest keys worth a program of their own
MOST_SHARES = 128  # of one tile

FIELDS = ("first_row", "rows", "sequence", "pages", "share", "shares", "part", "context", "local", "length", "tree")
"""What a program reads of its item: first of the forward's rows and how many; the sequence; up to which of its pages;
which of how many shares; where in the buffer of parts its rows begin (-1: they are the result); tokens in pages before
the new ones; the first row's number among the sequence's `length` new ones; where its tree's mask begins (-1: causal).
"""


LISTED_FIELDS = ("sequence", "source", "end", "recent", "streaming_recent")
"""Of a run of rows whose pages are listed: its sequence; whose choice of pages it uses, a row's number or one of those
below; behind which page its last row lies (0: a run of nobody); from which page on heads that select, and heads that
stream, see everything."""
OF_NOBODY, OF_EARLIER = -1, -2  # no page is chosen; those that the sequence chose in an earlier step


@dataclass(frozen=True)
class Tiling:
    """What programs of one launch are.

    Attributes:
        rows: of a tile, each a row of the batch and a head.
        group: heads that a tile takes along; all read the same KV head.
        heads: tiles beside one another for the same rows: query heads / group.
        packed: decode and drafts, whose keys are split; a chunk has tiles enough.
        page_size: of the pool.
    """

    rows: int
    group: int
    heads: int
    packed: bool
    page_size: int

    @classmethod
    def of(cls, widest: int, num_heads: int, kv_heads: int, page_size: int, *, narrow: bool = False) -> Tiling:
        """For sequences of up to ``widest`` new rows; ``narrow`` where a tile of 128 rows takes too many registers."""
        group = num_heads // kv_heads
        if widest >= PREFILL_ROWS:
            return cls(64 if narrow else 128, 1, num_heads, False, page_size)
        shared = next(n for n in range(min(group, 64), 0, -1) if group % n == 0)
        return cls(min(64, max(16, _power_of_2(widest * shared))), shared, num_heads // shared, True, page_size)

    @property
    def positions(self) -> int:
        """Rows of the batch in a tile."""
        return self.rows // self.group

    def most_tiles(self, rows: int, sequences: int) -> int:
        """Tiles that so many rows of so many sequences can come to."""
        return min(rows, rows // self.positions + sequences)

    def most_items(self, rows: int, sequences: int, pages: int) -> int:
        """Programs of a head that a launch over at most so many pages of a sequence can come to."""
        return self.most_tiles(rows, sequences) + self.spare(0)

    def most_parts(self, rows: int, sequences: int, pages: int) -> int:
        """Rows of the buffer of parts that it can come to."""
        return self.most_items(rows, sequences, pages) * self.positions

    def tiles(self, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of sequences of so many new rows, each tile's sequence, its first row's number in that, and its rows."""
        each = -(-lengths // self.positions)
        seq = np.repeat(np.arange(len(lengths)), each)
        local = within(each) * self.positions
        return seq, local, np.minimum(lengths[seq] - local, self.positions)

    def plan(self, bounds: Sequence[int], contexts: Sequence[int], trees: Sequence[int]) -> Work:
        """Cut the rows of S sequences into items.

        Args:
            bounds: [S + 1], cumulative counts of new rows. contexts: [S], tokens in pages before them.
            trees: [S], where the mask of a sequence begins among all masks; -1 for causal.
        """
        return make_work(bounds, contexts, trees, self)

    def spare(self, tiles: int) -> int:
        """Programs of a head beside one for each tile."""
        return max(0, PROGRAMS - (0 if self.packed else tiles * self.heads)) // self.heads


@dataclass(frozen=True)
class Work:
    """The items of a launch.

    Attributes:
        items: int32 [W, len(FIELDS)].
        joins: int32 [T, 3], for each row of the batch its first part, the step to the next and how many there are; a
            row of one part is written as it is, one of none is nobody's.
        parts: rows of the buffer of parts; 0 where no tile is split.
    """

    items: np.ndarray
    joins: np.ndarray
    parts: int


@dataclass(frozen=True)
class Launch:
    """A planned launch on the device.

    Attributes:
        tiling: what a program is. items, joins: as `Work` has them; items and rows of nobody are zeros.
        parts: rows of the buffer of parts; 0 where no tile is split.
    """

    tiling: Tiling
    items: Tensor
    joins: Tensor
    parts: int


def make_work(bounds: Sequence[int], contexts: Sequence[int], trees: Sequence[int], tiling: Tiling) -> Work:
    """As `Tiling.plan`."""
    edges, before, masks = (np.asarray(values, dtype=np.int64) for values in (bounds, contexts, trees))
    lengths = np.diff(edges)
    seq, local, rows = tiling.tiles(lengths)
    pages = -(-(before[seq] + local + rows) // tiling.page_size)
    shares = _shares(pages, tiling)
    first_row = edges[seq] + local
    split = np.where(shares > 1, shares * rows, 0)
    first_part = np.cumsum(split) - split
    joins = np.zeros((int(edges[-1]), 3), dtype=np.int32)
    of_row = np.repeat(np.arange(len(seq)), rows)
    at = first_row[of_row] + within(rows)
    joins[at] = np.stack([first_part[of_row] + within(rows), rows[of_row], shares[of_row]], 1)

    order = np.argsort(-(pages / shares), kind="stable")  # the longest first
    tile = np.repeat(order, shares[order])
    share = within(shares[order])
    part = np.where(shares[tile] > 1, first_part[tile] + share * rows[tile], -1)
    columns = (
        *(first_row[tile], rows[tile], seq[tile], pages[tile], share, shares[tile], part),
        *(before[seq[tile]], local[tile], lengths[seq[tile]], masks[seq[tile]]),
    )
    return Work(np.stack(columns, 1).astype(np.int32), joins, int(split.sum()))


def _shares(pages: np.ndarray, tiling: Tiling) -> np.ndarray:
    """Into how many shares the pages of each tile are cut."""
    spare = tiling.spare(len(pages))
    least = -(-SHARE_KEYS // tiling.page_size)
    most = int(pages.max(initial=least))
    if not spare or most <= least:
        return np.ones_like(pages)
    while least < most:  # the shortest share that makes no more items than wanted
        middle = (least + most) // 2
        if int(_cut(pages, middle).sum()) > len(pages) + spare:
            least = middle + 1
        else:
            most = middle
    return _cut(pages, most)


def _cut(pages: np.ndarray, share: int) -> np.ndarray:
    return np.clip(-(-pages // share), 1, MOST_SHARES)


def within(counts: np.ndarray) -> np.ndarray:
    """0, 1, … count - 1 for each count, one after the other."""
    ends = np.cumsum(counts)
    return np.arange(int(ends[-1]) if len(ends) else 0) - np.repeat(ends - counts, counts)


def _power_of_2(n: int) -> int:
    return 1 << (n - 1).bit_length()

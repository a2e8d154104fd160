"""One pass over many keys, by products of matrices, that keeps those which can be among the nearest.

A product is rounded, to bfloat16 where the processor multiplies that itself, and rounding is relative. The inner
products of a query and its neighbours are all near |q|², and tell them apart badly. So the product adds c − |x|²/2 to
q·x before it is rounded: half a squared distance, taken from a constant near 0. What rounding took from the addend and
from the query is known, and is counted afterwards.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np

from retrieval.common.processor import has_bfloat16
from retrieval.knn.kernels import keep_nearest, least_score_within, split_addends
from retrieval.knn.storage import packed, unpacked
from retrieval.knn.store import Datastore

CLOSE = 0.02
"""how far the square norms of queries may be from those that addends were made for; more candidates are the price"""
_ROOM = 4096


@dataclass(frozen=True)
class Addends:
    """What a product adds for every key x: ``rounded + rest`` = ``constant`` − |x|²/2.

    Attributes:
        rounded: uint16[n], the bits of bfloat16, or float32[n].
        rest: float32[n].
        constant: about −½|q|² of the queries q.
        greatest_rest: of all |rest|.
    """

    rounded: np.ndarray
    rest: np.ndarray
    constant: float
    greatest_rest: float

    @classmethod
    def of(cls, norms: np.ndarray, halves: bool, square: float) -> Addends:
        """norms: float32[n], squared, of the keys; square: that of the queries."""
        constant = np.float32(-square / 2)
        if not halves:
            return cls(constant - norms / 2, np.zeros_like(norms), float(constant), 0.0)
        rounded, rest = np.empty(len(norms), np.uint16), np.empty(len(norms), np.float32)
        split_addends(norms, constant, rounded, rest)
        return cls(rounded, rest, float(constant), float(np.abs(rest).max(initial=0)))

    def suit(self, square: float) -> bool:
        """Whether they serve queries of that squared norm about as well as their own would."""
        return abs(square + 2 * self.constant) <= CLOSE * square

    def __getitem__(self, rows: slice) -> tuple[np.ndarray, np.ndarray]:
        return self.rounded[rows], self.rest[rows]


class Scan:
    """One pass for a batch of queries float32[b, d]."""

    def __init__(self, store: Datastore, addends: Addends, queries: np.ndarray, k: int, halves: bool) -> None:
        """halves: multiply in bfloat16, the type of the keys."""
        import torch  # only a search needs it

        self._key_type, self._halves = store.identity.key_type, halves
        # a product with a matrix of one column is twice as slow in bfloat16 as one with two
        columns = torch.from_numpy(queries if len(queries) > 1 else np.repeat(queries, 2, axis=0)).T
        self._columns = columns.bfloat16() if halves else columns
        largest = float(np.sqrt(store.norms.max()))
        self._bounds = np.stack([error_bound(query, addends, largest, halves) for query in queries])
        count, k = len(queries), min(k, len(store))
        self._heaps = np.full((count, k), -np.inf, dtype=np.float32)
        self._least = np.full(count, -np.inf, dtype=np.float32)
        self._rows = np.empty((count, 4 * k + _ROOM), dtype=np.int64)
        self._scores = np.empty(self._rows.shape, dtype=np.float32)
        self._counts = np.zeros(count, dtype=np.int64)

    def look_at(
        self,
        keys: np.ndarray,
        addends: tuple[np.ndarray, np.ndarray],
        first: int,
        parts: np.ndarray | None = None,
        asked: np.ndarray | None = None,
    ) -> None:
        """keys [m, d] as they are kept, of the rows from ``first`` on, with their (rounded, rest).

        parts: int64[p + 1] where parts of them begin and end, and asked bool[b, p]: which query looks at which part.
        """
        import torch

        rounded, rest = addends
        if parts is None or asked is None:
            parts, asked = np.array([0, len(keys)]), np.ones((len(self._least), 1), dtype=bool)
        if self._halves:
            added, factors = (torch.from_numpy(bits).view(torch.bfloat16) for bits in (rounded, keys))
            products = torch.addmm(added[:, None], factors, self._columns).view(torch.uint16).numpy()
        else:
            factors = torch.from_numpy(unpacked(keys, self._key_type))
            products = torch.addmm(torch.from_numpy(rounded)[:, None], factors, self._columns).numpy()
        state = self._bounds, self._heaps, self._least, self._counts
        row = 0
        while (row := keep_nearest(products, rest, first, row, parts, asked, *state, self._rows, self._scores)) >= 0:
            # so many rows are equally near that there is no room for all: make some
            self._rows = np.concatenate([self._rows, np.empty_like(self._rows)], axis=1)
            self._scores = np.concatenate([self._scores, np.empty_like(self._scores)], axis=1)

    def nearest(self, query: int, distances: Callable[[np.ndarray], np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """(int64[≥ k] rows, their distances): the k nearest of a query among them. Thread-safe.

        distances: int64[m] rows → float32[m] squared distances, those that decide.
        """
        count, k = self._counts[query], self._heaps.shape[1]
        rows, scores = self._rows[query, :count], self._scores[query, :count]
        least = self._least[query]
        if count > 2 * k:  # how far the best by score really are bounds the rest more closely
            farthest = distances(rows[np.argpartition(scores, -k)[-k:]]).max()
            least = max(least, np.float32(least_score_within(np.sqrt(float(farthest)), self._bounds[query])))
        rows = rows[scores >= least]
        return rows, distances(rows)


def error_bound(query: np.ndarray, addends: Addends, largest: float, halves: bool) -> np.ndarray:
    """float64[5] (A, β, γ, κ, ρ) for a query q: keys x at distance t have |t² − (A − 2·score)| ≤ β·t² + γ·t + κ.

    A score is the rounded product and the addend's rest. With q = r + δ, r being q rounded,
    t² = |q|² + 2c − 2δ·q − 2(r·x + c − |x|²/2) − 2δ·(x − q). The last product is at most |δ|·t. The score is off
    by the product's rounding, u = 2⁻⁸ of |r·x + rounded| (2⁻²⁴ in float32), and by the sums of d products before it
    (Higham 2002, section 3.1: d·2⁻²⁴ of the sum of their magnitudes at most). ρ is how far the distances that decide in
    the end are off, as a share of them.
    """
    size = float(np.linalg.norm(query.astype(np.float64)))
    rounded = unpacked(packed(query, "bfloat16"), "bfloat16") if halves else query
    lost = (query - rounded).astype(np.float64)
    lost_size = float(np.linalg.norm(lost))
    at_zero = size**2 + 2 * addends.constant - 2 * float(lost @ query)
    unit = 2.0**-8 if halves else 2.0**-24
    epsilon = (len(query) + 4) * 2.0**-24
    constant = unit * (abs(at_zero) + 2 * addends.greatest_rest) + epsilon * (size + largest) ** 2
    return np.array([at_zero, unit, 2 * lost_size * (1 + unit), constant, 2 * epsilon])


@cache
def multiplies_bfloat16() -> bool:
    """Does the processor multiply bfloat16 itself, rounding once, after the addend? Neither is taken for granted."""
    import torch

    if not has_bfloat16():
        return False
    generator = torch.Generator().manual_seed(0)
    keys = torch.randn(256, 320, generator=generator).bfloat16() + 4
    queries = (keys[:12].float() + torch.randn(12, 320, generator=generator) / 8).bfloat16()
    for columns in (queries[:2], queries):
        added = -(keys[:, None].float() * columns.float()).sum(-1).mean(1).bfloat16()
        exact = keys.double() @ columns.double().T + added[:, None].double()
        apart = (torch.addmm(added[:, None], keys, columns.T).double() - exact).abs()
        if bool((apart > 2.0**-8 * exact.abs() + 1e-2).any()):
            return False
    return True

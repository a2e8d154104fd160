"""How often a kind of guess is right, learned from every verification.

A cell is a class of guesses (source, match length, share of the continuations, rank, …). Its value estimates
the probability that such a node is accepted given that its parent is; a node's path score is the product
along its path. The values are shared by all requests of an owner, so a new request starts from what earlier
ones taught.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from drafters.errors import DrafterError
from drafters.tree import DraftTree
from drafters.verify import Verdict

_CELLS = 4096
_PRIOR_WEIGHT = 4.0
_MEMORY = 256.0  # observations after which a cell's past is halved, so that it follows the traffic


@njit(cache=True)
def _count(parents, features, path, tries, hits, prior, cells):
    accepted = np.zeros(len(parents) + 1, np.bool_)  # by row
    accepted[0] = True
    accepted[path + 1] = True
    for node in range(len(parents)):
        cell = features[node]
        if cell < 0 or not accepted[parents[node] + 1]:
            continue
        tries[cell] += 1
        hits[cell] += accepted[node + 1]
        if tries[cell] >= _MEMORY:
            tries[cell] *= 0.5
            hits[cell] *= 0.5
        cells[cell] = (hits[cell] + _PRIOR_WEIGHT * prior[cell]) / (tries[cell] + _PRIOR_WEIGHT)


class Calibration:
    """`cells` float64 [_CELLS] holds the current estimates; blocks of it belong to sources."""

    def __init__(self) -> None:
        self.cells = np.zeros(_CELLS)
        self._prior = np.zeros(_CELLS)
        self._hits = np.zeros(_CELLS)
        self._tries = np.zeros(_CELLS)
        self._blocks: dict[str, tuple[int, int]] = {}
        self._used = 0

    @property
    def nbytes(self) -> int:
        return self.cells.nbytes + self._prior.nbytes + self._hits.nbytes + self._tries.nbytes

    def block(self, source: str, prior: np.ndarray) -> int:
        """The first cell of a source's block, made with the prior estimates (any shape) on first use."""
        flat = np.asarray(prior, dtype=np.float64).ravel()
        if source in self._blocks:
            offset, size = self._blocks[source]
            if size != len(flat):
                raise DrafterError(f"calibration block {source!r} has {size} cells, not {len(flat)}")
            return offset
        if self._used + len(flat) > _CELLS:
            raise DrafterError(f"no room for the {len(flat)} calibration cells of {source!r}")
        offset = self._used
        self._used += len(flat)
        self._blocks[source] = (offset, len(flat))
        self._prior[offset : self._used] = flat
        self.cells[offset : self._used] = flat
        return offset

    def observe(self, tree: DraftTree, verdict: Verdict) -> None:
        """Count the nodes whose parent was reached: right if accepted, wrong if not."""
        _count(
            tree.parents,
            tree.features,
            np.array(verdict.path, dtype=np.int64),
            self._tries,
            self._hits,
            self._prior,
            self.cells,
        )

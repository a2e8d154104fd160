"""How often a kind of guess is right, learned from every verification.

A cell is a class of guesses (source, match length, share of the continuations, rank, …). Its value estimates
the probability that such a node is accepted given that its parent is; a node's path score is the product
along its path. The values are shared by all requests of an engine, so a new request starts from what earlier
ones taught.
"""

from __future__ import annotations

import numpy as np

from drafters.errors import DrafterError
from drafters.tree import DraftTree
from drafters.verify import Verdict

_CELLS = 4096
_PRIOR_WEIGHT = 4.0
_MEMORY = 256.0  # observations after which a cell's past is halved, so that it follows the traffic


class Calibration:
    """`cells` float64 [_CELLS] holds the current estimates; blocks of it belong to sources."""

    def __init__(self) -> None:
        self.cells = np.zeros(_CELLS)
        self._prior = np.zeros(_CELLS)
        self._hits = np.zeros(_CELLS)
        self._tries = np.zeros(_CELLS)
        self._blocks: dict[str, tuple[int, int]] = {}
        self._used = 0

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

    def forget(self) -> None:
        """Go back to the prior estimates."""
        self._hits[:] = 0
        self._tries[:] = 0
        self.cells[:] = self._prior

    def observe(self, tree: DraftTree, verdict: Verdict) -> None:
        """Count the nodes whose parent was reached: right if accepted, wrong if not."""
        reached = {-1, *verdict.path}
        accepted = set(verdict.path)
        for node, (parent, cell) in enumerate(zip(tree.parents.tolist(), tree.features.tolist(), strict=True)):
            if cell >= 0 and parent in reached:
                self._count(cell, node in accepted)

    def _count(self, cell: int, hit: bool) -> None:
        self._tries[cell] += 1
        self._hits[cell] += hit
        if self._tries[cell] >= _MEMORY:
            self._tries[cell] *= 0.5
            self._hits[cell] *= 0.5
        self.cells[cell] = (self._hits[cell] + _PRIOR_WEIGHT * self._prior[cell]) / (self._tries[cell] + _PRIOR_WEIGHT)

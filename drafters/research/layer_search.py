"""Which layers to skip when the target drafts for itself (SWIFT, arXiv 2410.06916): searched while
serving."""

from __future__ import annotations

import random

_TRIAL = 8  # rounds that a candidate set gets before it is judged


class LayerSearch:
    """Keeps the best set so far and tries a neighbour of it now and then.

    SWIFT scores a set by how many past tokens it predicts; here a set is scored by what is wanted in the end,
    the emitted tokens per second of drafting and verifying, over a few rounds of real decoding. The first and
    the last layer are never skipped.
    """

    def __init__(self, num_layers: int, ratio: float, every: int, seed: int = 0) -> None:
        self._inner_layers = list(range(1, num_layers - 1))
        self._every = every
        self._random = random.Random(seed)
        count = min(round(ratio * num_layers), len(self._inner_layers))
        stride = len(self._inner_layers) / count if count else 0.0
        self.best = frozenset(self._inner_layers[int(i * stride)] for i in range(count))
        self._candidate: frozenset[int] | None = None
        self._rounds = 0
        self._tokens = 0
        self._seconds = 0.0
        self._best_rate = 0.0

    @property
    def current(self) -> frozenset[int]:
        """The layers to skip in the coming round."""
        return self.best if self._candidate is None else self._candidate

    def observe(self, emitted: int, seconds: float) -> None:
        """One round with `current`: tokens emitted, seconds of drafting and verifying."""
        self._rounds += 1
        self._tokens += emitted
        self._seconds += seconds
        if self._candidate is None and self._rounds >= self._every:
            self._best_rate = self._close()
            self._candidate = self._neighbour()
        elif self._candidate is not None and self._rounds >= _TRIAL:
            rate = self._close()
            if rate > self._best_rate:
                self.best, self._best_rate = self._candidate, rate
            self._candidate = None

    def _close(self) -> float:
        rate = self._tokens / max(self._seconds, 1e-9)
        self._rounds, self._tokens, self._seconds = 0, 0, 0.0
        return rate

    def _neighbour(self) -> frozenset[int] | None:
        """One layer swapped, added or dropped."""
        skipped = set(self.best)
        run = [layer for layer in self._inner_layers if layer not in skipped]
        moves = [name for name, possible in (("add", run), ("drop", skipped)) if possible]
        if not moves:
            return None
        move = self._random.choice(moves + ["swap"] * (2 if run and skipped else 0))
        if move in ("drop", "swap"):
            skipped.remove(self._random.choice(sorted(skipped)))
        if move in ("add", "swap"):
            skipped.add(self._random.choice(run))
        return frozenset(skipped)

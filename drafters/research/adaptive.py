"""SpecDec++ (arXiv 2405.19715): stop drafting when some token is probably rejected already.

The paper trains a head for the chance of acceptance; here it is the calibrated path score, learned online.
"""

from __future__ import annotations

from drafters.models.best_first import Stop


def rejection_likely(threshold: float) -> Stop:
    """Stop once the chance that any token of the best open path is rejected exceeds `threshold` (paper:
    0.3)."""

    def stop(best: float, expected: float, seconds: float) -> bool:
        return 1.0 - best > threshold

    return stop

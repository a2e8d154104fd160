"""Continuous Speculative Decoding (arXiv 2411.11925): tokens that are numbers, drawn by a diffusion head. Exact.

A head makes a token of noise in a few Gaussian steps. What a token's own density is only an integral over all the ways
there could tell; that of a way, noise to token, is a product. So a way is what is drafted, and accepted with the chance
min(1, p / q) of its densities under the target's head and the draft's. Both begin at the same noise (the paper aligns
trajectories): its density cancels, and alike heads have ratios near 1. Where it is rejected, the residual max(0, p - q)
has no form either; but a way drawn from p and kept with the chance max(0, 1 - q / p) is one of it, so it is drawn until
one is kept. The ways, hence the tokens, are distributed as the target's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

Way = tuple[float, ...]
"""Noise, and what each step made of it; the last is the token."""


@dataclass(frozen=True)
class DiffusionHead:
    """A toy: step t draws from the normal distribution of mean `mean(x, text, t)` and deviation scales[t]."""

    mean: Callable[[float, Sequence[float], int], float]
    scales: tuple[float, ...]

    def draw(self, text: Sequence[float], random: np.random.Generator, start: float | None = None) -> Way:
        """A way behind a text of tokens, from `start` on or from noise of its own."""
        way = [random.normal() if start is None else start]
        for t, scale in enumerate(self.scales):
            way.append(random.normal(self.mean(way[-1], text, t), scale))
        return tuple(way)

    def log_density(self, way: Way, text: Sequence[float]) -> float:
        """Of the steps of a way, given where it begins."""
        total = 0.0
        for t, scale in enumerate(self.scales):
            total -= 0.5 * ((way[t + 1] - self.mean(way[t], text, t)) / scale) ** 2 + math.log(
                scale * math.sqrt(math.tau)
            )
        return total


def accepts(log_p: float, log_q: float) -> float:
    """The chance that what was drawn with log density log_q is taken for a draw of the target's."""
    return math.exp(min(0.0, log_p - log_q))


def keeps(log_p: float, log_q: float) -> float:
    """The chance that what was drawn from the target is one of the residual's."""
    return max(0.0, 1.0 - math.exp(min(0.0, log_q - log_p)))


def decode(
    target: DiffusionHead, draft: DiffusionHead, count: int, length: int, random: np.random.Generator
) -> tuple[list[float], int]:
    """`count` tokens, the draft's head drafting `length` at a time; and how many of its tokens were accepted."""
    text: list[float] = []
    accepted = 0
    while len(text) < count:
        drafted = list(text)
        ways = []
        for _ in range(length):
            ways.append(draft.draw(drafted, random))
            drafted.append(ways[-1][-1])
        for way in ways:  # the target's head looks at all of them at once
            log_p, log_q = target.log_density(way, text), draft.log_density(way, text)
            if random.random() >= accepts(log_p, log_q):
                text.append(_of_the_rest(target, draft, text, random)[-1])
                break
            text.append(way[-1])
            accepted += 1
        else:
            text.append(target.draw(text, random)[-1])
    return text[:count], accepted


def _of_the_rest(
    target: DiffusionHead, draft: DiffusionHead, text: Sequence[float], random: np.random.Generator
) -> Way:
    """A way of the residual distribution."""
    while True:
        way = target.draw(text, random)
        if random.random() < keeps(target.log_density(way, text), draft.log_density(way, text)):
            return way

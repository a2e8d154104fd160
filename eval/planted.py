"""Windows of a text with numbers planted in it, each told once more at the end: what a policy forgets shows there.

The perplexity of running text hardly depends on single words far back. So up to `MOST` statements, no more than one for
every `TOKENS`, are put at even depths before the text whose loss counts, and all of them stand behind it again in
another order; a number is *recalled* where each of its tokens is the likeliest.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

from eval.losses import logprobs
from service.engine.async_engine import AsyncEngine

MOST = 16
TOKENS = 128


@dataclass(frozen=True)
class Planted:
    """A window of token ids.

    Attributes:
        scored: the text before what is told again, whose loss counts.
        numbers: where the numbers stand that are told again.
    """

    ids: list[int]
    scored: slice
    numbers: list[slice]


@dataclass(frozen=True)
class Reading:
    """What an engine made of windows: of each the mean negative log-probability, of each number whether it was
    recalled; the mean density of attention."""

    losses: list[float]
    recalled: list[bool]
    density: float

    @classmethod
    def of(cls, parts: Sequence[Reading]) -> Reading:
        """Of windows that were read apart."""
        return cls(
            [loss for part in parts for loss in part.losses],
            [right for part in parts for right in part.recalled],
            fmean(part.density for part in parts),
        )

    @property
    def loss(self) -> float:
        return fmean(self.losses)

    @property
    def recall(self) -> float:
        return fmean(self.recalled)

    def rise_over(self, dense: Reading) -> float:
        """The share by which perplexity rises over dense attention to the same windows."""
        return math.expm1(self.loss - dense.loss)


def plant(encode: Callable[[str], Sequence[int]], text: Sequence[int], scored: int, seed: int) -> Planted:
    """A window as long as ``text``, whose end gives way; up to ``scored`` tokens of it count."""
    rng = random.Random(seed)
    count = max(1, min(MOST, len(text) // TOKENS))
    told = [
        (list(encode(f" The number of box {box} is")), list(encode(f" {rng.randrange(10**4, 10**5)}")))
        for box in rng.sample(range(1000, 10_000), count)
    ]
    stop = list(encode("."))
    room = len(text) - 2 * sum(len(head) + len(number) + len(stop) for head, number in told)
    before = room - min(scored, room // 2)
    ids: list[int] = []
    for i, (head, number) in enumerate(told):
        ids += [*text[i * before // count : (i + 1) * before // count], *head, *number, *stop]
    begin = len(ids)
    ids += text[before:room]
    end = len(ids)
    numbers = []
    for head, number in rng.sample(told, count):
        ids += head
        numbers.append(slice(len(ids), len(ids) + len(number)))
        ids += [*number, *stop]
    return Planted(ids, slice(begin, end), numbers)


def read(engine: AsyncEngine, window: Planted, policy: str) -> Reading:
    """The window under a policy."""
    tokens, density = logprobs(engine, window.ids, policy)
    of = [None, *tokens]  # the first token has none before it
    loss = -fmean(one.logprob for one in of[window.scored] if one is not None)
    right = [all(one is not None and one.rank == 1 for one in of[at]) for at in window.numbers]
    return Reading([loss], right, density)

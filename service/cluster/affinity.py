"""Which replica answers: the one that has the document's pages, unless it is over its share.

Rendezvous hashing (Thaler & Ravishankar 1998) with bounded loads (Mirrokni et al. 2018). Every replica has a
weight for every key, and the heaviest has the key; so a replica that leaves gives up its own keys and no others, and
nobody has to remember anything. A replica that is over its share of the requests in flight is passed over for the next
in line, because waiting behind a queue can cost more than reading a document anew.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from itertools import count
from typing import Protocol

SPILL = 1.25
"""A replica's share of the requests in flight, beside an even one."""
SLACK = 4
"""So many requests in flight are never over a replica's share: they decode together in one batch."""


class Affinity:
    """Orders replicas for a request. Pure but for a counter that spreads requests without a key.

    Args:
        spill: largest load of a replica beside the even one, above 1.
        slack: load up to which a replica is never over its share, at least 1.
    """

    def __init__(self, spill: float = SPILL, slack: int = SLACK) -> None:
        if spill <= 1 or slack < 1:
            raise ValueError(f"spill must be above 1 and slack at least 1, not {spill} and {slack}")
        self.spill = spill
        self.slack = slack
        self._turns = count()

    def order(self, key: str | None, loads: Mapping[str, int]) -> list[str]:
        """Replicas, the best first. `loads`: replica → its requests in flight.

        With a key: those within their share by falling weight, then the others by falling weight. Without one: by
        rising load, ties in turn.
        """
        if key is None:
            by_turn = ranking(f"turn {next(self._turns)}", loads)
            return sorted(by_turn, key=loads.__getitem__)
        share = self.share(loads)
        ranked = ranking(key, loads)
        return sorted(ranked, key=lambda replica: loads[replica] >= share)  # stable: weight decides within both

    def share(self, loads: Mapping[str, int]) -> int:
        """Requests in flight with which a replica takes no more, counting the one that is to be placed."""
        even = (sum(loads.values()) + 1) / max(1, len(loads))
        return max(self.slack, math.ceil(self.spill * even))


def ranking(key: str, replicas: Iterable[str]) -> list[str]:
    """Replicas by falling weight for a key; the same everywhere, whatever the order they are given in."""
    return sorted(replicas, key=lambda replica: (_weight(key, replica), replica), reverse=True)


@lru_cache(maxsize=1 << 16)
def _weight(key: str, replica: str) -> int:
    digest = hashlib.blake2b(f"{key}\0{replica}".encode(errors="surrogatepass"), digest_size=8)
    return int.from_bytes(digest.digest())


class RandomChoice:
    """Replicas in random order, whatever the key: what affinity is measured against."""

    def __init__(self, seed: int = 0) -> None:
        self._random = random.Random(seed)

    def order(self, key: str | None, loads: Mapping[str, int]) -> list[str]:
        """Replicas, the best first."""
        return self._random.sample(sorted(loads), len(loads))


class Policy(Protocol):
    """Orders replicas for a request."""

    def order(self, key: str | None, loads: Mapping[str, int]) -> list[str]: ...


POLICIES: dict[str, Callable[[], Policy]] = {"affinity": Affinity, "random": RandomChoice}

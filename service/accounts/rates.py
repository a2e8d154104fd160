"""How many requests a minute a key may send, to all processes of one database together.

A bucket of each key is a row of SQL. A process takes a second's worth of requests from it at a time and spends them
without asking again, so that a busy key costs one small transaction a second and not one a request; a process holds
at most that much more than it has used.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

import sqlalchemy as sa

from retrieval.errors import DiskFull, StoreBusy
from retrieval.store.database import Database
from retrieval.store.tables import rate_buckets

PATIENCE_S = 0.25
"""for whoever writes to the database: one owner's large file must not keep another waiting at the door"""


@dataclass
class _Share:
    """What this process has taken of a key's bucket."""

    requests: int = 0
    refused_until: float = 0.0
    """by the monotonic clock: until then the bucket is known to be empty"""


class RateLimiter:
    """Admits requests by key. Thread-safe."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._shares: dict[str, _Share] = {}
        self._here: dict[str, tuple[float, float]] = {}
        """key → (requests left, when): buckets of this process, while the database has no space or time"""
        self._lock = threading.Lock()

    def spend(self, key_id: str) -> float | None:
        """0.0 when admitted from this process's share, seconds to wait when refused; None: `take` must be asked."""
        with self._lock:
            share = self._shares.setdefault(key_id, _Share())
            if share.requests:
                share.requests -= 1
                return 0.0
            wait = share.refused_until - time.monotonic()
            return wait if wait > 0 else None

    def take(self, key_id: str, per_minute: float) -> float:
        """0.0 when admitted, else the seconds until a request would be; asks the database.

        The bucket holds `per_minute` requests, and as many flow into it in a minute.
        """
        wanted = max(1, int(per_minute // 60))
        try:
            taken, wait = self._draw(key_id, per_minute, wanted)
        except (DiskFull, StoreBusy):  # whoever would make room must not be kept out: each process counts by itself
            taken, wait = self._draw_here(key_id, per_minute, wanted)
        with self._lock:
            share = self._shares.setdefault(key_id, _Share())
            share.requests += max(0, taken - 1)
            share.refused_until = time.monotonic() + min(wait, 1.0)
        return 0.0 if taken else wait

    def _draw(self, key_id: str, per_minute: float, wanted: int) -> tuple[int, float]:
        """(requests taken from the bucket, seconds until there is one)."""
        mine = rate_buckets.c.key_id == key_id
        at = time.time()
        with self._database.write_aside(PATIENCE_S) as connection:
            full = {"key_id": key_id, "tokens": per_minute, "filled_at": at}
            connection.execute(self._database.insert_if_absent(rate_buckets).values(full))
            row = connection.execute(sa.select(rate_buckets).where(mine).with_for_update()).one()
            flown = max(0.0, at - row.filled_at) * per_minute / 60
            tokens = min(per_minute, row.tokens + flown)
            taken = min(wanted, int(tokens))
            left = {"tokens": tokens - taken, "filled_at": max(at, row.filled_at)}
            connection.execute(sa.update(rate_buckets).where(mine).values(left))
        return taken, 0.0 if taken else (1 - tokens) * 60 / per_minute

    def _draw_here(self, key_id: str, per_minute: float, wanted: int) -> tuple[int, float]:
        """The same of a bucket of this process."""
        at = time.time()
        with self._lock:
            tokens, filled_at = self._here.get(key_id, (per_minute, at))
            tokens = min(per_minute, tokens + max(0.0, at - filled_at) * per_minute / 60)
            taken = min(wanted, int(tokens))
            self._here[key_id] = tokens - taken, at
        return taken, 0.0 if taken else (1 - tokens) * 60 / per_minute

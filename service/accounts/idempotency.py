"""Requests with an Idempotency-Key: answered once, whichever process of the database they reach."""

from __future__ import annotations

import asyncio
import datetime as dt
import hashlib
from collections.abc import Awaitable, Callable
from typing import Any

import sqlalchemy as sa

from retrieval.store.database import Database
from retrieval.store.tables import idempotency, now
from service.errors import Conflict, InvalidRequest, Unprocessable

LIFETIME = dt.timedelta(days=1)
"""for which an answer is kept"""
IN_FLIGHT = dt.timedelta(hours=1)
"""after which a request that has not ended is taken for dead, with the process that had it"""
KEPT = 1000
"""answers kept for one owner, the newest"""

Response = tuple[int, dict[str, Any]]
"""status and JSON body"""


class Idempotency:
    """A repeated key gets the first answer again; 409 while the first is in flight; 422 when the request differs."""

    def __init__(self, database: Callable[[], Database]) -> None:
        self._database = database

    async def once(
        self, owner: str, key: str, route: str, content: bytes, work: Callable[[], Awaitable[Response]]
    ) -> Response:
        """The response of `work`, or of the earlier request with this key. A failure of `work` is not kept.

        Raises InvalidRequest, Conflict or Unprocessable, and whatever `work` raises.
        """
        if not 1 <= len(key) <= 255 or not key.isprintable():
            raise InvalidRequest("An Idempotency-Key has 1 to 255 printable characters.", param="Idempotency-Key")
        fingerprint = hashlib.sha256(route.encode() + b"\0" + content).hexdigest()
        begun = now()
        earlier = await asyncio.to_thread(self._begin, owner, key, route, fingerprint, begun)
        if earlier is not None:
            return earlier
        try:
            response = await work()
        except BaseException:
            # shielded: a client that left must not leave the key taken
            await asyncio.shield(asyncio.to_thread(self._forget, owner, key, begun))
            raise
        await asyncio.to_thread(self._keep, owner, key, begun, response)
        return response

    def _begin(self, owner: str, key: str, route: str, fingerprint: str, at: dt.datetime) -> Response | None:
        """The earlier response, or None: the key is now this request's."""
        database = self._database()
        mine = idempotency.c.owner == owner, idempotency.c.key == key
        stale = sa.or_(
            idempotency.c.begun_at < at - LIFETIME,
            sa.and_(idempotency.c.status.is_(None), idempotency.c.begun_at < at - IN_FLIGHT),
        )
        row = {"owner": owner, "key": key, "route": route, "fingerprint": fingerprint, "begun_at": at}
        with database.write_aside() as connection:
            connection.execute(sa.delete(idempotency).where(stale))
            insert = database.insert_if_absent(idempotency).values(row).returning(idempotency.c.key)
            if connection.execute(insert).first() is not None:
                return None
            earlier = connection.execute(sa.select(idempotency).where(*mine)).one_or_none()
        if earlier is None or (earlier.status is None and earlier.fingerprint == fingerprint):
            raise Conflict("A request with this Idempotency-Key is in flight.", param="Idempotency-Key")
        if earlier.fingerprint != fingerprint:
            raise Unprocessable("This Idempotency-Key came with another request before.", param="Idempotency-Key")
        return earlier.status, earlier.body

    def _keep(self, owner: str, key: str, begun: dt.datetime, response: Response) -> None:
        """Nothing where the key is no longer this request's: a delete of a document takes it, which it may quote."""
        status, body = response
        theirs = idempotency.c.owner == owner
        with self._database().write_aside() as connection:
            connection.execute(sa.update(idempotency).where(*_mine(owner, key, begun)).values(status=status, body=body))
            newest = sa.select(idempotency.c.begun_at).where(theirs).order_by(idempotency.c.begun_at.desc())
            oldest_kept = connection.execute(newest.offset(KEPT).limit(1)).scalar()
            if oldest_kept is not None:
                connection.execute(
                    sa.delete(idempotency).where(
                        theirs, idempotency.c.begun_at <= oldest_kept, idempotency.c.status.is_not(None)
                    )
                )

    def _forget(self, owner: str, key: str, begun: dt.datetime) -> None:
        with self._database().write_aside() as connection:
            connection.execute(sa.delete(idempotency).where(*_mine(owner, key, begun)))


def _mine(owner: str, key: str, begun: dt.datetime) -> tuple[sa.ColumnElement[bool], ...]:
    return idempotency.c.owner == owner, idempotency.c.key == key, idempotency.c.begun_at == begun

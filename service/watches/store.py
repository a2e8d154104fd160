"""Watches and what they found, in SQL: each owner's own, looked at by one process at a time."""

from __future__ import annotations

import datetime as dt
import secrets
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from pydantic import Field

from retrieval.store.database import Database
from retrieval.store.shelf import Shelf
from retrieval.store.tables import collections, documents, journal, now, watch_changes, watches
from service.answering.question import AnswerOptions, Question
from service.errors import TooLarge
from service.fields import Text
from service.owned import Owned
from service.watches.changes import State

MOST_WATCHES = 100
"""of one owner"""
KEPT_CHANGES = 100
"""of one watch, the newest"""
LEASE = dt.timedelta(minutes=10)
PAUSE = dt.timedelta(seconds=5)
"""at least, between two looks of one watch: many files that come at once are one change"""
TRIES = 3
"""of a delivery, over all processes"""


class WatchSpec(AnswerOptions):
    """A question that is asked again; see `AnswerOptions` for the rest."""

    text: Text = Field(alias="question", min_length=1, max_length=20_000, description="What is asked.")
    webhook: Text | None = Field(None, max_length=2048, description="Told of each change, with a signature.")

    @property
    def question(self) -> Question:
        """As it is asked."""
        return Question(question=self.text, **{name: getattr(self, name) for name in AnswerOptions.model_fields})

    def check_scope(self, library: Shelf, owner: str) -> None:
        """Raises what `Question.check` does."""
        self.question.check(library, owner)


@dataclass(frozen=True)
class Watch:
    """A watched question.

    Attributes:
        seen: the journal up to here is in `state`.
        state: its last answer; None before the first, and after one of its documents was deleted.
        secret: signs what its webhook is told.
    """

    id: str
    owner: str
    spec: WatchSpec
    secret: str
    seen: int
    state: State | None
    checked_at: dt.datetime | None
    created_at: dt.datetime


@dataclass(frozen=True)
class Change:
    """An answer that became another.

    Attributes:
        documents: ids, names and versions of what had changed.
        delivery: none, pending, delivered, or failed with `error`.
    """

    id: int
    watch: str
    at: dt.datetime
    documents: list[dict[str, Any]]
    before: State | None
    after: State
    difference: dict[str, Any]
    delivery: str
    error: str | None


class WatchStore:
    """The watches of one database. Blocks; for threads."""

    def __init__(self, database: Callable[[], Database]) -> None:
        self._database = database

    def add(self, owner: str, spec: WatchSpec) -> Watch:
        """Raises TooLarge: the owner watches too much."""
        number = secrets.token_hex(8)
        row = {
            "id": number,
            "owner": owner,
            "spec": spec.model_dump(mode="json", by_alias=True),
            "secret": secrets.token_hex(32),
            "seen": 0,
            "created_at": now(),
        }
        with self._database().write_aside() as connection:
            count = sa.select(sa.func.count()).where(watches.c.owner == owner)
            if connection.execute(count).scalar_one() >= MOST_WATCHES:
                raise TooLarge(f"{MOST_WATCHES} questions are watched, which is the limit.", hint="Remove one.")
            connection.execute(sa.insert(watches).values(row))
        return self.get(owner, number)

    def get(self, owner: str, watch: str) -> Watch:
        """Raises NotFound, as those below do: it is another owner's, deleted, or never was."""
        return _watch(_WATCHES.one(self._database(), owner, watch))

    def all(self, owner: str) -> list[Watch]:
        """The owner's, the newest first."""
        query = sa.select(watches).where(watches.c.owner == owner).order_by(watches.c.created_at.desc(), watches.c.id)
        with self._database().read() as connection:
            return [_watch(row) for row in connection.execute(query)]

    def changes(self, owner: str, watch: str) -> list[Change]:
        """What it found, the newest first."""
        self.get(owner, watch)
        query = sa.select(watch_changes).where(watch_changes.c.watch_id == watch).order_by(watch_changes.c.id.desc())
        with self._database().read() as connection:
            return [_change(row) for row in connection.execute(query)]

    def delete(self, owner: str, watch: str) -> None:
        """Forget a watch and what it found."""
        self.get(owner, watch)
        with self._database().write_aside() as connection:
            connection.execute(sa.delete(watch_changes).where(watch_changes.c.watch_id == watch))
            connection.execute(sa.delete(watches).where(*_WATCHES.mine(owner, watch)))

    def claim(self, holder: str, busy: Collection[str] = ()) -> Watch | None:
        """A watch that was never asked, or whose owner's documents have changed since; now the holder's.

        None of the owners who are `busy`.
        """
        at = now()
        expired = watches.c.expires_at < at, watches.c.holder != holder
        free = sa.or_(watches.c.holder.is_(None), sa.and_(*expired))
        changed = sa.exists().where(journal.c.owner == watches.c.owner, journal.c.seq > watches.c.seen)
        due = sa.or_(watches.c.checked_at.is_(None), sa.and_(changed, watches.c.checked_at < at - PAUSE))
        with self._database().read() as connection:
            waiting = sa.select(watches.c.id, watches.c.owner).where(free, due, watches.c.owner.not_in(busy))
            longest_first = sa.func.coalesce(watches.c.checked_at, watches.c.created_at)
            found = connection.execute(waiting.order_by(longest_first).limit(16)).all()
        for one in found:
            taking = sa.update(watches).where(watches.c.id == one.id, free, due)
            with self._database().write_aside() as connection:
                if connection.execute(taking.values(holder=holder, expires_at=at + LEASE)).rowcount:
                    return self.get(one.owner, one.id)
        return None

    def touched(self, watch: Watch) -> tuple[int, list[dict[str, Any]]]:
        """The newest number of the journal, and the documents that a watch is about and that changed since it looked.

        A document that is gone has its id alone.
        """
        with self._database().read() as connection:
            last = connection.execute(sa.select(sa.func.coalesce(sa.func.max(journal.c.seq), 0))).scalar_one()
            entries = connection.execute(
                sa.select(
                    journal.c.document_id,
                    journal.c.version,
                    documents.c.name,
                    collections.c.name.label("collection"),
                )
                .outerjoin(documents, documents.c.id == journal.c.document_id)
                .outerjoin(collections, collections.c.id == documents.c.collection_id)
                .where(journal.c.owner == watch.owner, journal.c.seq > watch.seen)
                .order_by(journal.c.seq)
            ).all()
        spec = watch.spec
        found: dict[str, dict[str, Any]] = {}
        for entry in entries:
            mine = not spec.documents or entry.document_id in spec.documents
            here = spec.collection is None or entry.collection in (spec.collection, None)
            if mine and here:
                found[entry.document_id] = {
                    "document": entry.document_id,
                    "name": entry.name or "",
                    "version": entry.version,
                    "deleted": entry.name is None,
                }
        return int(last), list(found.values())

    def keep(
        self,
        watch: Watch,
        holder: str,
        seen: int,
        state: State | None,
        touched: list[dict[str, Any]] | None = None,
        difference: dict[str, Any] | None = None,
    ) -> Change | None:
        """Let go of a watch; returns the change where there is a difference, kept in the same transaction.

        holder: who claimed it; nothing is kept for one whose lease has run out and went to another.
        state: None leaves the answer as it was. One that was made of a document which has been deleted meanwhile is
            dropped, and the question asked again.
        """
        values: dict[str, Any] = {"seen": seen, "checked_at": now(), "holder": None, "expires_at": None}
        if state is not None:
            values["state"] = state
        change = None
        with self._database().write() as connection:  # in turn with deletes, which must not be overtaken
            if state is not None and not _all_there(connection, watch.owner, state["read"]):
                values |= {"seen": watch.seen, "state": None}
                difference = None
            there = connection.execute(sa.update(watches).where(*_held(watch, holder)).values(values)).rowcount
            if there and difference is not None and state is not None:
                row = {
                    "watch_id": watch.id,
                    "at": now(),
                    "documents": touched or [],
                    "before": watch.state,
                    "after": state,
                    "difference": difference,
                    "delivery": "pending" if watch.spec.webhook else "none",
                    "tries": 0,
                }
                change = connection.execute(sa.insert(watch_changes).values(row).returning(watch_changes.c.id)).scalar()
                newest = (
                    sa.select(watch_changes.c.id)
                    .where(watch_changes.c.watch_id == watch.id)
                    .order_by(watch_changes.c.id.desc())
                    .limit(KEPT_CHANGES)
                )
                old = watch_changes.c.watch_id == watch.id, watch_changes.c.id.not_in(newest)
                connection.execute(sa.delete(watch_changes).where(*old))
        if change is None:
            return None
        return next((one for one in self.changes(watch.owner, watch.id) if one.id == change), None)

    def release(self, watch: Watch, holder: str) -> None:
        """Let go of a watch that could not be asked; it is asked again."""
        with self._database().write_aside() as connection:
            connection.execute(
                sa.update(watches)
                .where(*_held(watch, holder))
                .values(holder=None, expires_at=None, checked_at=now() if watch.checked_at else None)
            )

    def to_deliver(self, busy: Collection[str] = ()) -> tuple[Watch, Change] | None:
        """A change that no webhook was told of yet, one try of which is taken; none of the owners who are `busy`."""
        pending = watch_changes.c.delivery == "pending", watch_changes.c.tries < TRIES
        stale = sa.or_(watch_changes.c.tried_at.is_(None), watch_changes.c.tried_at < now() - LEASE)
        with self._database().write_aside() as connection:
            theirs = sa.select(watches.c.id).where(watches.c.owner.in_(busy))
            others = sa.select(watch_changes).where(*pending, stale, watch_changes.c.watch_id.not_in(theirs))
            row = connection.execute(others.order_by(watch_changes.c.id).limit(1)).one_or_none()
            if row is None:
                return None
            mine = sa.update(watch_changes).where(watch_changes.c.id == row.id, *pending, stale)
            if not connection.execute(mine.values(tries=watch_changes.c.tries + 1, tried_at=now())).rowcount:
                return None
            watch = connection.execute(sa.select(watches).where(watches.c.id == row.watch_id)).one()
        return _watch(watch), _change(row)

    def delivered(self, change: Change, why: str | None) -> None:
        """Note how a delivery ended; why: None where the webhook took it."""
        values = {"delivery": "delivered" if why is None else "failed", "error": why and why[:500]}
        with self._database().write_aside() as connection:
            connection.execute(sa.update(watch_changes).where(watch_changes.c.id == change.id).values(values))


_WATCHES = Owned("watch", watches, sa.select(watches))


def _all_there(connection: sa.Connection, owner: str, read: list[str]) -> bool:
    there = sa.select(sa.func.count()).where(documents.c.owner == owner, documents.c.id.in_(read))
    return bool(connection.execute(there).scalar_one() == len(set(read)))


def _held(watch: Watch, holder: str) -> tuple[sa.ColumnElement[bool], ...]:
    return watches.c.id == watch.id, watches.c.holder == holder


def _watch(row: Any) -> Watch:
    spec = WatchSpec.model_validate(row.spec)
    return Watch(row.id, row.owner, spec, row.secret, row.seen, row.state, row.checked_at, row.created_at)


def _change(row: Any) -> Change:
    return Change(
        row.id,
        row.watch_id,
        row.at,
        row.documents,
        row.before,
        row.after,
        row.difference,
        row.delivery,
        row.error,
    )

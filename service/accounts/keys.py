"""API keys and the audit log.

A key is 256 random bits, shown once; the database holds its SHA-256, which for a secret of that size needs no salt
and no stretching. A key has an owner, whose documents it sees, and scopes: read (search, answer, list), write
(upload, delete), metrics (figures of all owners together), admin (everything).
"""

from __future__ import annotations

import contextlib
import datetime as dt
import hashlib
import hmac
import math
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from retrieval.errors import StoreBusy, StoreUnavailable
from retrieval.store.database import Database
from retrieval.store.tables import api_keys, audit, now
from retrieval.types import DEFAULT_OWNER
from service.accounts.rates import PATIENCE_S
from service.errors import InvalidRequest, NotFound
from service.settings import Settings

SCOPES = ("read", "write", "metrics", "admin")
NO_KEY_S = 1.0
LIMITS = ("rate_per_minute", "concurrency", "storage_bytes")


@dataclass(frozen=True)
class Principal:
    """On whose behalf a request runs, and what it may do.

    Attributes:
        key_id: None for a caller without a key, which only a service without keys admits.
        limits: `rate_per_minute`, `concurrency`, `storage_bytes`; empty for no limits.
    """

    owner: str = DEFAULT_OWNER
    key_id: str | None = None
    scopes: frozenset[str] = frozenset(SCOPES)
    limits: Mapping[str, float] = field(default_factory=dict)

    def may(self, scope: str) -> bool:
        return scope in self.scopes or "admin" in self.scopes


@dataclass(frozen=True)
class Key:
    """A key as listed: everything but the secret."""

    id: str
    owner: str
    name: str
    scopes: tuple[str, ...]
    limits: dict[str, float]
    created_at: dt.datetime
    last_used_at: dt.datetime | None
    expires_at: dt.datetime | None
    revoked_at: dt.datetime | None

    @property
    def active(self) -> bool:
        return self.revoked_at is None and (self.expires_at is None or self.expires_at > now())


class KeyStore:
    """The keys and the audit log of one database. Thread-safe."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self.database = database
        self.settings = settings
        self._in_use = settings.api_key is not None
        self._asked = -math.inf
        self._touched: dict[str, float] = {}

    def in_use(self) -> bool:
        """Whether requests need a key: one is set, or one was ever made (revoking the last one opens nothing)."""
        if not self._in_use:
            asked = time.monotonic()
            with self.database.read() as connection:
                self._in_use = connection.execute(sa.select(api_keys.c.id).limit(1)).first() is not None
            self._asked = asked
        return self._in_use

    def remembered_in_use(self) -> bool | None:
        """What `in_use` would say, or None where the database has to be asked.

        "No" is believed for a second: so long after another process has made the first key, requests need it.
        """
        if self._in_use:
            return True
        return False if time.monotonic() - self._asked < NO_KEY_S else None

    def create(
        self,
        owner: str,
        name: str = "",
        scopes: Sequence[str] = ("read", "write"),
        limits: Mapping[str, float] | None = None,
        expires_at: dt.datetime | None = None,
    ) -> tuple[Key, str]:
        """A new key and its secret, which is not stored and cannot be shown again.

        Raises InvalidRequest for an unknown scope, limit or an empty owner.
        """
        if not owner or len(owner) > 64:
            raise InvalidRequest("An owner has 1 to 64 characters.", param="owner")
        unknown = [scope for scope in scopes if scope not in SCOPES]
        if unknown or not scopes:
            raise InvalidRequest(f"Unknown scope {', '.join(unknown) or 'none'!r}; choose of {', '.join(SCOPES)}.")
        given = dict(limits or {})
        if any(limit not in LIMITS or value <= 0 for limit, value in given.items()):
            raise InvalidRequest(f"Limits are {', '.join(LIMITS)}, each above 0.", param="limits")
        secret = f"folio_{secrets.token_urlsafe(32)}"
        key_id = secrets.token_hex(8)
        row = {
            "id": key_id,
            "owner": owner,
            "name": name[:127],
            "scopes": list(scopes),
            "limits": given,
            "created_at": now(),
            "expires_at": expires_at,
        }
        with self.database.write() as connection:
            connection.execute(api_keys.insert().values(hash=_hash(secret), **row))
        self._in_use = True
        self.record(owner, None, "key.create", key_id, {"scopes": list(scopes)})
        return self.get(key_id), secret

    def get(self, key_id: str) -> Key:
        """One key. Raises NotFound."""
        for key in self.all():
            if key.id == key_id:
                return key
        raise NotFound(f"There is no key {key_id!r}.", param="key")

    def all(self) -> list[Key]:
        """All keys, oldest first, revoked ones too."""
        with self.database.read() as connection:
            rows = connection.execute(sa.select(api_keys).order_by(api_keys.c.created_at)).mappings()
            return [_key(row) for row in rows]

    def revoke(self, key_id: str) -> Key:
        """End a key at once. Raises NotFound; revoking twice keeps the first time."""
        key = self.get(key_id)
        with self.database.write() as connection:
            still_valid = (api_keys.c.id == key_id) & api_keys.c.revoked_at.is_(None)
            connection.execute(api_keys.update().where(still_valid).values(revoked_at=now()))
        self.record(key.owner, None, "key.revoke", key_id)
        return self.get(key_id)

    def principal(self, secret: str) -> Principal | None:
        """Whom a secret stands for, or None for one that is unknown, revoked or expired."""
        own = self.settings.api_key
        if own is not None and hmac.compare_digest(own.get_secret_value().encode(), secret.encode()):
            return Principal(DEFAULT_OWNER, "settings")
        with self.database.read() as connection:
            found = connection.execute(sa.select(api_keys).where(api_keys.c.hash == _hash(secret))).mappings()
            row = found.first()
        if row is None or not _key(row).active:
            return None
        key = _key(row)
        self._touch(key.id)
        defaults = {
            "rate_per_minute": float(self.settings.key_requests_per_minute),
            "concurrency": float(self.settings.key_concurrency),
            "storage_bytes": self.settings.key_storage_mb * 2**20,
        }
        return Principal(key.owner, key.id, frozenset(key.scopes), defaults | key.limits)

    def record(
        self,
        owner: str,
        key_id: str | None,
        action: str,
        subject: str,
        detail: Mapping[str, Any] | None = None,
    ) -> None:
        """Append to the audit log: who did what to what."""
        with self.database.write() as connection:
            note(connection, owner, key_id, action, subject, detail)

    def audit_log(self, limit: int = 100) -> list[dict[str, Any]]:
        """The newest entries of the audit log, newest first."""
        with self.database.read() as connection:
            rows = connection.execute(sa.select(audit).order_by(audit.c.id.desc()).limit(limit)).mappings()
            return [dict(row) for row in rows]

    def _touch(self, key_id: str) -> None:
        """Note that a key was used, to the minute; a database that cannot write refuses nobody for that."""
        if time.monotonic() - self._touched.get(key_id, -60.0) < 60:
            return
        self._touched[key_id] = time.monotonic()
        with contextlib.suppress(StoreUnavailable, StoreBusy), self.database.write_aside(PATIENCE_S) as connection:
            connection.execute(api_keys.update().where(api_keys.c.id == key_id).values(last_used_at=now()))


def note(
    connection: sa.Connection,
    owner: str,
    key_id: str | None,
    action: str,
    subject: str,
    detail: Mapping[str, Any] | None = None,
) -> None:
    """`KeyStore.record` within a transaction that does what is recorded."""
    row = {"at": now(), "owner": owner, "key_id": key_id, "action": action, "subject": subject[:255]}
    connection.execute(audit.insert().values(detail=dict(detail or {}), **row))


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _key(row: Mapping[Any, Any]) -> Key:
    columns = ("id", "owner", "name", "created_at", "last_used_at", "expires_at", "revoked_at")
    return Key(**{c: row[c] for c in columns}, scopes=tuple(row["scopes"]), limits=dict(row["limits"]))

"""The tables. Chunk ids are 64-bit and never reused (AUTOINCREMENT on SQLite, identity on PostgreSQL)."""

from __future__ import annotations

import datetime as dt
from typing import Any

import sqlalchemy as sa

metadata = sa.MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

# SQLite gives an ever-growing rowid only to a column declared INTEGER PRIMARY KEY AUTOINCREMENT.
BigId = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


class Time(sa.TypeDecorator[dt.datetime]):
    """An aware UTC time; SQLite, which knows no zones, stores it naive."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: dt.datetime | None, dialect: Any) -> dt.datetime | None:
        if value is None:
            return None
        utc = value.astimezone(dt.UTC)
        return utc.replace(tzinfo=None) if dialect.name == "sqlite" else utc

    def process_result_value(self, value: dt.datetime | None, dialect: Any) -> dt.datetime | None:
        return value if value is None or value.tzinfo else value.replace(tzinfo=dt.UTC)


def now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


collections = sa.Table(
    "collections",
    metadata,
    sa.Column("id", BigId, primary_key=True, autoincrement=True),
    sa.Column("owner", sa.String(64), nullable=False),
    sa.Column("name", sa.String(255), nullable=False),
    sa.Column("created_at", Time, nullable=False),
    sa.UniqueConstraint("owner", "name"),
    sqlite_autoincrement=True,
)

documents = sa.Table(
    "documents",
    metadata,
    sa.Column("id", sa.String(16), primary_key=True),
    sa.Column("owner", sa.String(64), nullable=False),
    sa.Column("collection_id", BigId, sa.ForeignKey("collections.id"), nullable=False),
    sa.Column("name", sa.String(255), nullable=False),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("sha256", sa.String(64), nullable=False),
    sa.Column("media_type", sa.String(127), nullable=False),
    sa.Column("size", sa.BigInteger, nullable=False),
    sa.Column("status", sa.String(16), nullable=False),
    sa.Column("pages", sa.Integer, nullable=False),
    sa.Column("chunks", sa.Integer, nullable=False),
    sa.Column("chars", sa.BigInteger, nullable=False),
    sa.Column("error", sa.Text),
    sa.Column("notes", sa.JSON, nullable=False, server_default="[]"),
    sa.Column("created_at", Time, nullable=False),
    sa.Column("updated_at", Time, nullable=False),
    sa.UniqueConstraint("collection_id", "name"),
    sa.Index(None, "owner", "sha256"),
)

# Every version's text stays, so that a citation of an old version can still be shown and checked.
versions = sa.Table(
    "versions",
    metadata,
    sa.Column("document_id", sa.String(16), sa.ForeignKey("documents.id"), primary_key=True),
    sa.Column("version", sa.Integer, primary_key=True),
    sa.Column("sha256", sa.String(64), nullable=False),
    sa.Column("media_type", sa.String(127), nullable=False),
    sa.Column("size", sa.BigInteger, nullable=False),
    sa.Column("text", sa.Text, nullable=False),
    sa.Column("notes", sa.JSON, nullable=False, server_default="[]"),
    sa.Column("places", sa.LargeBinary),  # as retrieval.parsing.places packs them; null for none
    sa.Column("unread_share", sa.Float, nullable=False, server_default="0"),
    sa.Column("created_at", Time, nullable=False),
    sa.Index(None, "sha256"),
)

pages = sa.Table(
    "pages",
    metadata,
    sa.Column("document_id", sa.String(16), sa.ForeignKey("documents.id"), primary_key=True),
    sa.Column("version", sa.Integer, primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("start", sa.BigInteger, nullable=False),
    sa.Column("end", sa.BigInteger, nullable=False),
)

chunks = sa.Table(
    "chunks",
    metadata,
    sa.Column("id", BigId, primary_key=True, autoincrement=True),
    sa.Column("document_id", sa.String(16), sa.ForeignKey("documents.id"), nullable=False),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("owner", sa.String(64), nullable=False),
    sa.Column("ordinal", sa.Integer, nullable=False),
    sa.Column("start", sa.BigInteger, nullable=False),
    sa.Column("end", sa.BigInteger, nullable=False),
    sa.Column("page", sa.Integer, nullable=False),
    sa.Column("tokens", sa.Integer, nullable=False),
    sa.Column("place", sa.Text, nullable=False, server_default=""),
    sa.Column("context", sa.Text, nullable=False, server_default=""),
    # A copy of the slice: a search must not read a whole book to show ten passages of it.
    sa.Column("text", sa.Text, nullable=False),
    sa.Index(None, "document_id", "version", "ordinal"),
    sqlite_autoincrement=True,
)

embedders = sa.Table(
    "embedders",
    metadata,
    sa.Column("id", BigId, primary_key=True, autoincrement=True),
    sa.Column("fingerprint", sa.String(512), nullable=False, unique=True),
    sa.Column("dim", sa.Integer, nullable=False),
    sa.Column("current", sa.Boolean, nullable=False),
    sqlite_autoincrement=True,
)

embeddings = sa.Table(
    "embeddings",
    metadata,
    sa.Column("chunk_id", BigId, sa.ForeignKey("chunks.id"), primary_key=True, autoincrement=False),
    sa.Column("embedder_id", BigId, sa.ForeignKey("embedders.id"), primary_key=True, autoincrement=False),
    sa.Column("vector", sa.LargeBinary, nullable=False),  # little-endian float32[dim]
)

journal = sa.Table(
    "journal",
    metadata,
    sa.Column("seq", BigId, primary_key=True, autoincrement=True),
    sa.Column("op", sa.String(8), nullable=False),  # add | delete
    sa.Column("document_id", sa.String(16), nullable=False),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("owner", sa.String(64), nullable=False),
    sa.Column("chunks", sa.Integer, nullable=False),
    sa.Column("at", Time, nullable=False),
    sqlite_autoincrement=True,
)

index_generations = sa.Table(
    "index_generations",
    metadata,
    sa.Column("id", BigId, primary_key=True, autoincrement=True),
    sa.Column("folder", sa.String(127), nullable=False, unique=True),
    sa.Column("seq", sa.BigInteger, nullable=False),  # the journal up to here is in it
    sa.Column("chunks", sa.BigInteger, nullable=False),
    sa.Column("embedder_id", BigId, sa.ForeignKey("embedders.id"), nullable=False),
    sa.Column("manifest_sha256", sa.String(64), nullable=False),
    sa.Column("created_at", Time, nullable=False),
    sqlite_autoincrement=True,
)

leases = sa.Table(
    "leases",
    metadata,
    sa.Column("name", sa.String(32), primary_key=True),
    sa.Column("holder", sa.String(64), nullable=False),
    sa.Column("host", sa.String(255), nullable=False),
    sa.Column("pid", sa.Integer, nullable=False),
    sa.Column("purpose", sa.String(64), nullable=False),
    sa.Column("acquired_at", Time, nullable=False),
    sa.Column("expires_at", Time, nullable=False),
)

jobs = sa.Table(
    "jobs",
    metadata,
    sa.Column("id", sa.String(16), primary_key=True),
    sa.Column("owner", sa.String(64), nullable=False),
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("payload", sa.JSON, nullable=False),
    sa.Column("status", sa.String(16), nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("max_attempts", sa.Integer, nullable=False),
    sa.Column("run_after", Time, nullable=False),
    sa.Column("holder", sa.String(64)),
    sa.Column("expires_at", Time),
    sa.Column("cancel_requested", sa.Boolean, nullable=False),
    sa.Column("progress", sa.JSON, nullable=False),
    sa.Column("results", sa.JSON, nullable=False),
    sa.Column("error", sa.Text),
    sa.Column("created_at", Time, nullable=False),
    sa.Column("updated_at", Time, nullable=False),
    sa.Index(None, "status", "run_after"),
    sa.Index(None, "owner", "created_at"),
)

api_keys = sa.Table(
    "api_keys",
    metadata,
    sa.Column("id", sa.String(16), primary_key=True),
    sa.Column("owner", sa.String(64), nullable=False),
    sa.Column("name", sa.String(127), nullable=False),
    sa.Column("hash", sa.String(64), nullable=False, unique=True),
    sa.Column("scopes", sa.JSON, nullable=False),  # list of read | write | admin
    sa.Column("limits", sa.JSON, nullable=False),  # {"rate_per_minute", "concurrency", "storage_bytes"}
    sa.Column("created_at", Time, nullable=False),
    sa.Column("last_used_at", Time),
    sa.Column("expires_at", Time),
    sa.Column("revoked_at", Time),
)

# What several processes that serve one database must agree on.
rate_buckets = sa.Table(
    "rate_buckets",
    metadata,
    sa.Column("key_id", sa.String(16), primary_key=True),
    sa.Column("tokens", sa.Float, nullable=False),
    sa.Column("filled_at", sa.Float, nullable=False),  # seconds since 1970
)

idempotency = sa.Table(
    "idempotency",
    metadata,
    sa.Column("owner", sa.String(64), primary_key=True),
    sa.Column("key", sa.String(255), primary_key=True),
    sa.Column("route", sa.String(16), nullable=False),
    sa.Column("fingerprint", sa.String(64), nullable=False),
    sa.Column("status", sa.Integer),  # of the response; null while the request is in flight
    sa.Column("body", sa.JSON),
    sa.Column("begun_at", Time, nullable=False),
    sa.Index(None, "begun_at"),
)

# Answers that a later request may go on from.
responses = sa.Table(
    "responses",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("owner", sa.String(64), nullable=False),
    sa.Column("previous_id", sa.String(64)),
    sa.Column("input", sa.JSON, nullable=False),  # list of items, as the request had them
    sa.Column("body", sa.JSON, nullable=False),  # the response itself
    sa.Column("created_at", Time, nullable=False),
    sa.Column("size", sa.BigInteger, nullable=False, server_default="0"),  # bytes of input and body
    sa.Index(None, "owner", "created_at", "size"),  # which are added up without reading either
    sa.Index(None, "created_at"),
)

# Questions asked of every document of a shelf: a row a document, which goes with it.
answer_tables = sa.Table(
    "answer_tables",
    metadata,
    sa.Column("id", sa.String(16), primary_key=True),
    sa.Column("owner", sa.String(64), nullable=False),
    sa.Column("spec", sa.JSON, nullable=False),  # columns, scope, mode
    sa.Column("status", sa.String(16), nullable=False),  # queued | running | done | cancelled
    sa.Column("holder", sa.String(64)),  # the process that fills it
    sa.Column("expires_at", Time),
    sa.Column("created_at", Time, nullable=False),
    sa.Column("updated_at", Time, nullable=False),
    sa.Index(None, "owner", "created_at"),
    sa.Index(None, "status", "updated_at"),
)
answer_rows = sa.Table(
    "answer_rows",
    metadata,
    sa.Column("table_id", sa.String(16), sa.ForeignKey("answer_tables.id"), primary_key=True),
    sa.Column("ordinal", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("document_id", sa.String(16), nullable=False),
    sa.Column("name", sa.String(255), nullable=False),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("cells", sa.JSON(none_as_null=True)),  # a cell a column; null before they are answered
    sa.Index(None, "document_id"),
)

# Questions that are asked again when documents change, and what became different.
watches = sa.Table(
    "watches",
    metadata,
    sa.Column("id", sa.String(16), primary_key=True),
    sa.Column("owner", sa.String(64), nullable=False),
    sa.Column("spec", sa.JSON, nullable=False),  # the question, its scope, its webhook
    sa.Column("secret", sa.String(64), nullable=False),  # signs what the webhook is told
    sa.Column("seen", sa.BigInteger, nullable=False),  # the journal up to here is in the state
    sa.Column("state", sa.JSON(none_as_null=True)),  # the last answer
    sa.Column("holder", sa.String(64)),
    sa.Column("expires_at", Time),
    sa.Column("checked_at", Time),
    sa.Column("created_at", Time, nullable=False),
    sa.Index(None, "owner", "created_at"),
)
watch_changes = sa.Table(
    "watch_changes",
    metadata,
    sa.Column("id", BigId, primary_key=True, autoincrement=True),
    sa.Column("watch_id", sa.String(16), sa.ForeignKey("watches.id"), nullable=False),
    sa.Column("at", Time, nullable=False),
    sa.Column("documents", sa.JSON, nullable=False),
    sa.Column("before", sa.JSON(none_as_null=True)),
    sa.Column("after", sa.JSON, nullable=False),
    sa.Column("difference", sa.JSON, nullable=False),
    sa.Column("delivery", sa.String(16), nullable=False),  # none | pending | delivered | failed
    sa.Column("tries", sa.Integer, nullable=False),
    sa.Column("tried_at", Time),
    sa.Column("error", sa.Text),
    sa.Index(None, "watch_id"),
    sa.Index(None, "delivery"),
    sqlite_autoincrement=True,
)

# Conversations of the page; a turn goes with the documents that it was made of.
conversations = sa.Table(
    "conversations",
    metadata,
    sa.Column("id", sa.String(16), primary_key=True),
    sa.Column("owner", sa.String(64), nullable=False),
    sa.Column("title", sa.String(255), nullable=False),
    sa.Column("created_at", Time, nullable=False),
    sa.Column("updated_at", Time, nullable=False),
    sa.Column("size", sa.BigInteger, nullable=False, server_default="0"),  # bytes of its turns
    sa.Index(None, "owner", "updated_at"),
)
conversation_turns = sa.Table(
    "conversation_turns",
    metadata,
    sa.Column("conversation_id", sa.String(16), sa.ForeignKey("conversations.id"), primary_key=True),
    sa.Column("ordinal", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("content", sa.JSON, nullable=False),
)

# The installation's own key, in one row.
signing_keys = sa.Table(
    "signing_keys",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("private", sa.LargeBinary, nullable=False),  # Ed25519, 32 bytes
    sa.Column("created_at", Time, nullable=False),
)

audit = sa.Table(
    "audit",
    metadata,
    sa.Column("id", BigId, primary_key=True, autoincrement=True),
    sa.Column("at", Time, nullable=False),
    sa.Column("owner", sa.String(64), nullable=False),
    sa.Column("key_id", sa.String(16)),
    sa.Column("action", sa.String(64), nullable=False),
    sa.Column("subject", sa.String(255), nullable=False),
    sa.Column("detail", sa.JSON, nullable=False),
    sa.Index(None, "owner", "at"),
    sqlite_autoincrement=True,
)

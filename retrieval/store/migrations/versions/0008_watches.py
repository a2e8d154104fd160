"""Watched questions and what became different."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

BigId = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
Time = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "watches",
        sa.Column("id", sa.String(length=16), nullable=False),
        sa.Column("owner", sa.String(length=64), nullable=False),
        sa.Column("spec", sa.JSON(), nullable=False),
        sa.Column("secret", sa.String(length=64), nullable=False),
        sa.Column("seen", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.JSON(), nullable=True),
        sa.Column("holder", sa.String(length=64), nullable=True),
        sa.Column("expires_at", Time, nullable=True),
        sa.Column("checked_at", Time, nullable=True),
        sa.Column("created_at", Time, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_watches")),
    )
    op.create_index(op.f("ix_watches_owner_created_at"), "watches", ["owner", "created_at"], unique=False)
    op.create_table(
        "watch_changes",
        sa.Column("id", BigId, autoincrement=True, nullable=False),
        sa.Column("watch_id", sa.String(length=16), nullable=False),
        sa.Column("at", Time, nullable=False),
        sa.Column("documents", sa.JSON(), nullable=False),
        sa.Column("before", sa.JSON(), nullable=True),
        sa.Column("after", sa.JSON(), nullable=False),
        sa.Column("difference", sa.JSON(), nullable=False),
        sa.Column("delivery", sa.String(length=16), nullable=False),
        sa.Column("tries", sa.Integer(), nullable=False),
        sa.Column("tried_at", Time, nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(["watch_id"], ["watches.id"], name=op.f("fk_watch_changes_watch_id_watches")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_watch_changes")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_watch_changes_watch_id"), "watch_changes", ["watch_id"], unique=False)
    op.create_index(op.f("ix_watch_changes_delivery"), "watch_changes", ["delivery"], unique=False)


def downgrade() -> None:
    op.drop_table("watch_changes")
    op.drop_table("watches")

"""How many bytes kept conversations and responses have, which count in their owner's quota."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for table in ("conversations", "responses"):
        op.add_column(table, sa.Column("size", sa.BigInteger(), nullable=False, server_default="0"))
    op.execute(
        "UPDATE conversations SET size = COALESCE((SELECT SUM(LENGTH(CAST(content AS TEXT))) FROM conversation_turns "
        "WHERE conversation_id = conversations.id), 0)"
    )
    op.execute("UPDATE responses SET size = LENGTH(CAST(input AS TEXT)) + LENGTH(CAST(body AS TEXT))")
    op.drop_index(op.f("ix_responses_owner_created_at"), "responses")
    op.create_index(op.f("ix_responses_owner_created_at_size"), "responses", ["owner", "created_at", "size"])


def downgrade() -> None:
    op.drop_index(op.f("ix_responses_owner_created_at_size"), "responses")
    op.create_index(op.f("ix_responses_owner_created_at"), "responses", ["owner", "created_at"])
    for table in ("conversations", "responses"):
        op.drop_column(table, "size")

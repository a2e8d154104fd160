"""Tables of answers: a row a document."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

Time = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "answer_tables",
        sa.Column("id", sa.String(length=16), nullable=False),
        sa.Column("owner", sa.String(length=64), nullable=False),
        sa.Column("spec", sa.JSON(), nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("holder", sa.String(length=64), nullable=True),
        sa.Column("expires_at", Time, nullable=True),
        sa.Column("created_at", Time, nullable=False),
        sa.Column("updated_at", Time, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_answer_tables")),
    )
    op.create_index(op.f("ix_answer_tables_owner_created_at"), "answer_tables", ["owner", "created_at"], unique=False)
    op.create_index(op.f("ix_answer_tables_status_updated_at"), "answer_tables", ["status", "updated_at"], unique=False)
    op.create_table(
        "answer_rows",
        sa.Column("table_id", sa.String(length=16), nullable=False),
        sa.Column("ordinal", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("document_id", sa.String(length=16), nullable=False),
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("cells", sa.JSON(), nullable=True),
        sa.ForeignKeyConstraint(["table_id"], ["answer_tables.id"], name=op.f("fk_answer_rows_table_id_answer_tables")),
        sa.PrimaryKeyConstraint("table_id", "ordinal", name=op.f("pk_answer_rows")),
    )
    op.create_index(op.f("ix_answer_rows_document_id"), "answer_rows", ["document_id"], unique=False)


def downgrade() -> None:
    op.drop_table("answer_rows")
    op.drop_table("answer_tables")

"""The headings and table headers that a chunk is searched and shown with."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("chunks", sa.Column("context", sa.Text(), nullable=False, server_default=""))


def downgrade() -> None:
    op.drop_column("chunks", "context")

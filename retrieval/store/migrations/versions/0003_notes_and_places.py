"""What of a document was not read, and where in its file its text stands."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("documents", sa.Column("notes", sa.JSON(), nullable=False, server_default="[]"))
    op.add_column("versions", sa.Column("notes", sa.JSON(), nullable=False, server_default="[]"))
    op.add_column("versions", sa.Column("places", sa.LargeBinary(), nullable=True))
    op.add_column("versions", sa.Column("unread_share", sa.Float(), nullable=False, server_default="0"))
    op.add_column("chunks", sa.Column("place", sa.Text(), nullable=False, server_default=""))


def downgrade() -> None:
    op.drop_column("chunks", "place")
    op.drop_column("versions", "unread_share")
    op.drop_column("versions", "places")
    op.drop_column("versions", "notes")
    op.drop_column("documents", "notes")

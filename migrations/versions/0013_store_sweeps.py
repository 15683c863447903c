"""What sweeps of the store have removed, and when one last ended"""

import sqlalchemy as sa
from alembic import op

from app.database import UTCDateTime

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

INTEGER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    with op.batch_alter_table("store_sweeps") as batch_op:
        batch_op.add_column(sa.Column("ended_at", UTCDateTime(timezone=True), nullable=True))
        batch_op.add_column(sa.Column("files_removed", INTEGER, server_default="0", nullable=False))
        batch_op.add_column(sa.Column("uploads_ended", INTEGER, server_default="0", nullable=False))


def downgrade() -> None:
    with op.batch_alter_table("store_sweeps") as batch_op:
        batch_op.drop_column("uploads_ended")
        batch_op.drop_column("files_removed")
        batch_op.drop_column("ended_at")

"""outages, strikes, and jobs taken straight from the database"""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


INTEGER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    with op.batch_alter_table("jobs") as batch_op:
        batch_op.add_column(sa.Column("again_at", sa.DateTime(timezone=True), nullable=True))
        batch_op.add_column(sa.Column("outage", sa.JSON(none_as_null=True), nullable=True))
        batch_op.add_column(sa.Column("strikes", INTEGER, nullable=False, server_default="0"))
        batch_op.drop_index("ix_jobs_state_queue_sent_at")
        batch_op.drop_column("sent_at")
        batch_op.create_index("ix_jobs_state_queue_id", ["state", "queue", "id"], unique=False)
    with op.batch_alter_table("jobs") as batch_op:
        batch_op.alter_column("strikes", server_default=None)
    with op.batch_alter_table("workers") as batch_op:
        batch_op.add_column(sa.Column("trouble", sa.String(), nullable=True))


def downgrade() -> None:
    with op.batch_alter_table("workers") as batch_op:
        batch_op.drop_column("trouble")
    with op.batch_alter_table("jobs") as batch_op:
        batch_op.drop_index("ix_jobs_state_queue_id")
        batch_op.add_column(sa.Column("sent_at", sa.DateTime(timezone=True), nullable=True))
        batch_op.create_index("ix_jobs_state_queue_sent_at", ["state", "queue", "sent_at"], unique=False)
        batch_op.drop_column("strikes")
        batch_op.drop_column("outage")
        batch_op.drop_column("again_at")

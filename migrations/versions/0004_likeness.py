"""jobs of like work"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # The jobs so far get no likeness. So how long a job takes is unknown until a like one is done.
    with op.batch_alter_table("jobs", schema=None) as batch_op:
        batch_op.add_column(sa.Column("likeness", sa.String(), nullable=True))
        batch_op.create_index(batch_op.f("ix_jobs_likeness_state_id"), ["likeness", "state", "id"], unique=False)


def downgrade() -> None:
    with op.batch_alter_table("jobs", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_jobs_likeness_state_id"))
        batch_op.drop_column("likeness")

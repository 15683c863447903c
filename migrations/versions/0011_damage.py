"""When artifacts were checked, which are damaged, and which form of signature a plan has"""

import sqlalchemy as sa
from alembic import op

from app.database import UTCDateTime

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

TIMES = ("checked_at", "checking_until", "damaged_at")
INTEGER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
INDEXED = ("checked_at", "damaged_at")


def upgrade() -> None:
    with op.batch_alter_table("blobs") as batch_op:
        for name in TIMES:
            batch_op.add_column(sa.Column(name, UTCDateTime(timezone=True), nullable=True))
        for name in ("damage", "found_by"):
            batch_op.add_column(sa.Column(name, sa.String(), nullable=True))
        for name in INDEXED:
            batch_op.create_index(f"ix_blobs_{name}", [name])
    op.execute("UPDATE blobs SET checked_at = created_at")
    with op.batch_alter_table("engines") as batch_op:
        # The engines that are there, and those of workers of the release before, have signatures of the first form.
        batch_op.add_column(sa.Column("signature_form", INTEGER, nullable=False, server_default="1"))


def downgrade() -> None:
    with op.batch_alter_table("engines") as batch_op:
        batch_op.drop_column("signature_form")
    with op.batch_alter_table("blobs") as batch_op:
        for name in INDEXED:
            batch_op.drop_index(f"ix_blobs_{name}")
        for name in (*TIMES, "damage", "found_by"):
            batch_op.drop_column(name)

"""retention, and the sweep of the store"""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

# Without these, the removal of a job would look through all rows that may name it.
REFERENCES = (("engines", "job_id"), ("engines", "materialise_job_id"), ("idempotency_keys", "job_id"))


def upgrade() -> None:
    op.create_table(
        "store_sweeps",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("due_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("last", sa.String(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_store_sweeps")),
    )
    # Neither statement writes a row anew on either database: these tables are large.
    number = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    op.add_column("jobs", sa.Column("pruned", number, nullable=False, server_default="0"))
    op.create_index(op.f("ix_jobs_pruned_finished_at"), "jobs", ["pruned", "finished_at"])
    op.create_index(op.f("ix_idempotency_keys_created_at"), "idempotency_keys", ["created_at"])
    for table, column in REFERENCES:
        op.create_index(op.f(f"ix_{table}_{column}"), table, [column])


def downgrade() -> None:
    for table, column in REFERENCES:
        op.drop_index(op.f(f"ix_{table}_{column}"), table)
    op.drop_index(op.f("ix_idempotency_keys_created_at"), "idempotency_keys")
    op.drop_index(op.f("ix_jobs_pruned_finished_at"), "jobs")
    with op.batch_alter_table("jobs") as batch_op:
        batch_op.drop_column("pruned")
    op.drop_table("store_sweeps")

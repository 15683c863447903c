"""platforms, plans that are materialised later, timing caches"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
LAZY = "SELECT count(*) FROM engines WHERE plan_digest IS NULL"


def upgrade() -> None:
    with op.batch_alter_table("engines", schema=None) as batch_op:
        batch_op.add_column(sa.Column("platform", sa.String(), nullable=True))
        batch_op.add_column(sa.Column("root_plan", sa.String(), nullable=True))
        batch_op.add_column(sa.Column("base_id", NUMBER, nullable=True))
        batch_op.add_column(sa.Column("materialise_job_id", sa.String(), nullable=True))
    # Every engine so far is of onnxruntime. Its plans work on any CPU, and a refitted engine has its parent's plan.
    op.execute("UPDATE engines SET platform = 'cpu', root_plan = plan_digest")
    with op.batch_alter_table("engines", schema=None) as batch_op:
        batch_op.alter_column("platform", existing_type=sa.String(), nullable=False)
        batch_op.alter_column("root_plan", existing_type=sa.String(), nullable=False)
        batch_op.alter_column("plan_digest", existing_type=sa.String(), nullable=True)
        batch_op.alter_column("plan_bytes", existing_type=NUMBER, nullable=True)
        batch_op.alter_column("plan_signature", existing_type=sa.String(), nullable=True)
        batch_op.create_foreign_key(batch_op.f("fk_engines_base_id_engines"), "engines", ["base_id"], ["id"])
        batch_op.create_foreign_key(
            batch_op.f("fk_engines_materialise_job_id_jobs"), "jobs", ["materialise_job_id"], ["id"]
        )

    op.create_table(
        "timing_caches",
        sa.Column("platform", sa.String(), nullable=False),
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("bytes", NUMBER, nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["digest"], ["blobs.digest"], name=op.f("fk_timing_caches_digest_blobs")),
        sa.PrimaryKeyConstraint("platform", name=op.f("pk_timing_caches")),
    )


def downgrade() -> None:
    lazy = op.get_bind().exec_driver_sql(LAZY).scalar_one()
    if lazy:
        raise RuntimeError(
            f"{lazy} engines have no plan of their own yet, which revision 0001 cannot hold. Materialise each with "
            "POST /v1/models/{model}/engines/{number}/materialise, then downgrade."
        )
    op.execute("DELETE FROM blob_uses WHERE owner LIKE 'timing_cache:%'")
    op.drop_table("timing_caches")
    with op.batch_alter_table("engines", schema=None) as batch_op:
        batch_op.drop_constraint(batch_op.f("fk_engines_materialise_job_id_jobs"), type_="foreignkey")
        batch_op.drop_constraint(batch_op.f("fk_engines_base_id_engines"), type_="foreignkey")
        batch_op.alter_column("plan_signature", existing_type=sa.String(), nullable=False)
        batch_op.alter_column("plan_bytes", existing_type=NUMBER, nullable=False)
        batch_op.alter_column("plan_digest", existing_type=sa.String(), nullable=False)
        batch_op.drop_column("materialise_job_id")
        batch_op.drop_column("base_id")
        batch_op.drop_column("root_plan")
        batch_op.drop_column("platform")

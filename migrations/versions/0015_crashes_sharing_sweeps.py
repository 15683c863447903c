"""Crashes of compilers, jobs that wait for others, sweeps, and what engines were measured on"""

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0013"
branch_labels = None
depends_on = None

KEY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
MOMENT = sa.DateTime(timezone=True)


def upgrade() -> None:
    # No statement writes a row anew on either database: these tables are large.
    op.add_column("jobs", sa.Column("crashes", KEY, server_default="0", nullable=False))
    op.add_column("jobs", sa.Column("makes", sa.String(), nullable=True))
    op.create_index("ix_jobs_makes_state", "jobs", ["makes", "state"])
    op.create_table(
        "job_dependencies",
        sa.Column("job_id", sa.String(), nullable=False),
        sa.Column("awaited_id", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("job_id", "awaited_id", name="pk_job_dependencies"),
    )
    op.create_index("ix_job_dependencies_awaited_id", "job_dependencies", ["awaited_id"])
    op.create_table(
        "compiler_crashes",
        sa.Column("recipe", sa.String(), nullable=False),
        sa.Column("backend_version", sa.String(), nullable=False),
        sa.Column("definition_id", KEY, nullable=False),
        sa.Column("backend", sa.String(), nullable=False),
        sa.Column("profiles", sa.JSON(), nullable=False),
        sa.Column("options", sa.JSON(), nullable=False),
        sa.Column("layer", sa.String(), nullable=True),
        sa.Column("detail", sa.String(), nullable=False),
        sa.Column("job_id", sa.String(), nullable=False),
        sa.Column("at", MOMENT, nullable=False),
        sa.ForeignKeyConstraint(
            ["definition_id"], ["definitions.id"], name="fk_compiler_crashes_definition_id_definitions"
        ),
        sa.PrimaryKeyConstraint("definition_id", "recipe", "backend_version", name="pk_compiler_crashes"),
    )
    op.add_column("models", sa.Column("last_sweep", KEY, server_default="0", nullable=False))
    op.create_table(
        "sweeps",
        sa.Column("id", KEY, nullable=False),
        sa.Column("model_id", KEY, nullable=False),
        sa.Column("number", KEY, nullable=False),
        sa.Column("definition", KEY, nullable=False),
        sa.Column("weights", KEY, nullable=False),
        sa.Column("backend", sa.String(), nullable=False),
        sa.Column("tolerance", sa.Double(), nullable=True),
        sa.Column("measurement", sa.JSON(), nullable=False),
        sa.Column("job_id", sa.String(), nullable=True),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_sweeps_job_id_jobs"),
        sa.ForeignKeyConstraint(["model_id"], ["models.id"], name="fk_sweeps_model_id_models"),
        sa.PrimaryKeyConstraint("id", name="pk_sweeps"),
        sa.UniqueConstraint("model_id", "number", name="uq_sweeps_model_id_number"),
    )
    op.create_index("ix_sweeps_job_id", "sweeps", ["job_id"])
    op.create_table(
        "sweep_variants",
        sa.Column("sweep_id", KEY, nullable=False),
        sa.Column("position", KEY, nullable=False),
        sa.Column("label", sa.String(), nullable=False),
        sa.Column("options", sa.JSON(), nullable=False),
        sa.Column("profiles", sa.JSON(), nullable=False),
        sa.Column("job_id", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_sweep_variants_job_id_jobs"),
        sa.ForeignKeyConstraint(["sweep_id"], ["sweeps.id"], name="fk_sweep_variants_sweep_id_sweeps"),
        sa.PrimaryKeyConstraint("sweep_id", "position", name="pk_sweep_variants"),
    )
    op.create_index("ix_sweep_variants_job_id", "sweep_variants", ["job_id"])
    op.add_column("engines", sa.Column("device_fingerprint", sa.JSON(), nullable=True))


def downgrade() -> None:
    with op.batch_alter_table("engines") as batch_op:
        batch_op.drop_column("device_fingerprint")
    op.drop_table("sweep_variants")
    op.drop_table("sweeps")
    with op.batch_alter_table("models") as batch_op:
        batch_op.drop_column("last_sweep")
    op.drop_table("compiler_crashes")
    op.drop_table("job_dependencies")
    with op.batch_alter_table("jobs") as batch_op:
        batch_op.drop_index("ix_jobs_makes_state")
        batch_op.drop_column("makes")
        batch_op.drop_column("crashes")

"""what engines are verified with"""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "verification_defaults",
        sa.Column("definition_id", NUMBER, nullable=False),
        sa.Column("inputs", sa.String(), nullable=False),
        sa.Column("tolerance", sa.JSON(none_as_null=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["definition_id"], ["definitions.id"], name=op.f("fk_verification_defaults_definition_id_definitions")
        ),
        sa.ForeignKeyConstraint(["inputs"], ["blobs.digest"], name=op.f("fk_verification_defaults_inputs_blobs")),
        sa.PrimaryKeyConstraint("definition_id", name=op.f("pk_verification_defaults")),
    )


def downgrade() -> None:
    op.drop_table("verification_defaults")

"""bindings in a table of their own"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
BATCH = 100  # rows; each has some hundred kilobytes

bindings = sa.table("bindings", sa.column("id"), sa.column("digest"), sa.column("report", sa.JSON))
engines = sa.table("engines", sa.column("id"), sa.column("binding", sa.JSON), sa.column("binding_id"))
jobs = sa.table("jobs", sa.column("id"), sa.column("request", sa.JSON))


def upgrade() -> None:
    op.create_table(
        "bindings",
        sa.Column("id", NUMBER, nullable=False),
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("report", sa.JSON(none_as_null=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_bindings")),
        sa.UniqueConstraint("digest", name=op.f("uq_bindings_digest")),
    )
    with op.batch_alter_table("engines", schema=None) as batch_op:
        batch_op.add_column(sa.Column("binding_id", NUMBER, nullable=True))
    connection = op.get_bind()
    for key, report in _rows(connection, engines.c.id, engines.c.binding):
        row = {"binding_id": _recorded(connection, report)}
        connection.execute(sa.update(engines).where(engines.c.id == key).values(row))
    for key, request in _rows(connection, jobs.c.id, jobs.c.request):
        if "binding" in request:
            named = {**request, "binding_id": _recorded(connection, request["binding"])}
            del named["binding"]
            connection.execute(sa.update(jobs).where(jobs.c.id == key).values(request=named))
    with op.batch_alter_table("engines", schema=None) as batch_op:
        batch_op.alter_column("binding_id", existing_type=NUMBER, nullable=False)
        batch_op.create_foreign_key(batch_op.f("fk_engines_binding_id_bindings"), "bindings", ["binding_id"], ["id"])
        batch_op.drop_column("binding")


def downgrade() -> None:
    with op.batch_alter_table("engines", schema=None) as batch_op:
        batch_op.add_column(sa.Column("binding", sa.JSON(none_as_null=True), nullable=True))
    connection = op.get_bind()
    report = sa.select(bindings.c.report).where(bindings.c.id == engines.c.binding_id).scalar_subquery()
    connection.execute(sa.update(engines).values(binding=report))
    for key, request in _rows(connection, jobs.c.id, jobs.c.request):
        if "binding_id" in request:
            found = sa.select(bindings.c.report).where(bindings.c.id == request["binding_id"])
            held = {**request, "binding": connection.execute(found).scalar_one()}
            del held["binding_id"]
            connection.execute(sa.update(jobs).where(jobs.c.id == key).values(request=held))
    with op.batch_alter_table("engines", schema=None) as batch_op:
        batch_op.drop_constraint(batch_op.f("fk_engines_binding_id_bindings"), type_="foreignkey")
        batch_op.alter_column("binding", existing_type=sa.JSON(), nullable=False)
        batch_op.drop_column("binding_id")
    op.drop_table("bindings")


def _rows(connection: sa.Connection, key: sa.ColumnClause[Any], value: sa.ColumnClause[Any]) -> Iterator[Any]:
    """Yield keys and values; rows are read in batches, so that they may be changed meanwhile."""
    statement = sa.select(key, value).order_by(key).limit(BATCH)
    rows = connection.execute(statement).all()
    while rows:
        yield from rows
        rows = connection.execute(statement.where(key > rows[-1][0])).all()


def _recorded(connection: sa.Connection, report: Mapping[str, Any]) -> int:
    """Return the id of a report, and store the report if it is new, as `app.bindings.service.record` does."""
    digest = "sha256:" + hashlib.sha256(json.dumps(report).encode()).hexdigest()
    known = sa.select(bindings.c.id).where(bindings.c.digest == digest)
    found = connection.execute(known).scalar()
    if found is None:
        connection.execute(sa.insert(bindings).values(digest=digest, report=report))
        found = connection.execute(known).scalar_one()
    return int(found)

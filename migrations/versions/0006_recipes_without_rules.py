"""recipes without binding rules"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

BATCH = 1000  # rows of some kilobytes

engines = sa.table(
    "engines",
    sa.column("id"),
    sa.column("definition_id"),
    sa.column("backend"),
    sa.column("recipe"),
    sa.column("profiles", sa.JSON),
    sa.column("options", sa.JSON),
    sa.column("rules", sa.JSON),
)
definitions = sa.table("definitions", sa.column("id"), sa.column("digest"))


def upgrade() -> None:
    _digest_again(with_rules=False)


def downgrade() -> None:
    _digest_again(with_rules=True)


def _digest_again(*, with_rules: bool) -> None:
    """Engines without rules, which are most, keep the recipe they have."""
    connection = op.get_bind()
    for row in _engines_with_rules(connection):
        recipe = _digest(
            definition=row.digest,
            backend=row.backend,
            profiles=row.profiles,
            options=row.options,
            rules=row.rules if with_rules else [],
        )
        connection.execute(sa.update(engines).where(engines.c.id == row.id).values(recipe=recipe))


def _engines_with_rules(connection: sa.Connection) -> Iterator[Any]:
    """Yield them in batches, so that rows may be changed meanwhile."""
    columns = (engines.c.id, engines.c.backend, engines.c.profiles, engines.c.options, engines.c.rules)
    statement = (
        sa.select(*columns, definitions.c.digest)
        .join(definitions, definitions.c.id == engines.c.definition_id)
        .order_by(engines.c.id)
        .limit(BATCH)
    )
    rows = connection.execute(statement).all()
    while rows:
        yield from (row for row in rows if row.rules)
        rows = connection.execute(statement.where(engines.c.id > rows[-1].id)).all()


def _digest(**content: object) -> str:
    """Digest as `app.engines.fingerprint` does in this release."""
    canonical = json.dumps(_plain(content), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return "sha256:" + hashlib.sha256(canonical.encode()).hexdigest()


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value

"""Alembic's entry point: runs the migrations over the database it is given."""

from typing import Any

from alembic import context

from app.database import Database, UTCDateTime
from app.tables import Base


def main() -> None:
    """Run the migrations in one transaction."""
    database = Database(context.config.attributes["url"])
    with database.engine.connect() as connection:
        context.configure(
            connection=connection,
            target_metadata=Base.metadata,
            render_as_batch=connection.dialect.name == "sqlite",
            compare_type=True,
            render_item=_plain_type,
        )
        with context.begin_transaction():
            context.run_migrations()
    database.dispose()


def _plain_type(kind: str, item: Any, _context: Any) -> str | bool:  # noqa: ANN401 - Alembic's signature
    """Write the column type the database sees, so that no migration depends on application code."""
    return "sa.DateTime(timezone=True)" if kind == "type" and isinstance(item, UTCDateTime) else False


main()

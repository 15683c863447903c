"""Alembic's entry point: runs the migrations over the database whose URL the configuration gives."""

from typing import Any, Literal

import sqlalchemy as sa
from alembic import context

from app.database import Database, UTCDateTime
from app.tables import Base

LOCK_KEY = 0x656E67696E65  # "engine"; it may be any number that no other program on the server locks


def main() -> None:
    """Run the migrations in one transaction, which only one process at a time can hold."""
    database = Database(context.config.attributes["url"])
    sqlite = database.engine.dialect.name == "sqlite"
    with database.engine.connect() as connection:
        if sqlite:
            _without_foreign_keys(connection)
        context.configure(
            # BEGIN IMMEDIATE takes SQLite's write lock before the present revision is read
            connection=connection.execution_options(begin_immediate=True),
            target_metadata=Base.metadata,
            transactional_ddl=True,
            render_as_batch=sqlite,
            compare_type=True,
            render_item=_plain_type,
        )
        with context.begin_transaction():
            if not sqlite:
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(LOCK_KEY)))
            context.run_migrations()
            if sqlite:
                _check_foreign_keys(connection)
    database.dispose()


def _without_foreign_keys(connection: sa.Connection) -> None:
    """Let batch migrations replace a table that others refer to; SQLite accepts this only outside a transaction."""
    driver_connection: Any = connection.connection.driver_connection
    driver_connection.execute("PRAGMA foreign_keys=OFF")


def _check_foreign_keys(connection: sa.Connection) -> None:
    broken = connection.exec_driver_sql("PRAGMA foreign_key_check").all()
    if broken:
        raise sa.exc.IntegrityError(
            "PRAGMA foreign_key_check", None, ValueError(f"rows without their parent: {broken}")
        )


def _plain_type(kind: str, item: Any, _context: Any) -> str | Literal[False]:  # noqa: ANN401 - Alembic's signature
    """Return the column type as the database sees it, so that no migration depends on application code."""
    return "sa.DateTime(timezone=True)" if kind == "type" and isinstance(item, UTCDateTime) else False


main()

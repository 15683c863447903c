"""Checks that the database is there, before a command works with it."""

from pathlib import Path

import sqlalchemy as sa

from app.database import DATABASE_DOWN, Database
from app.serve.errors import CannotStart
from app.settings import Settings


def require_database_file(settings: Settings) -> None:
    """Raise CannotStart "no_database" if the database is a file that does not exist."""
    url = sa.make_url(settings.database)
    if url.get_backend_name() == "sqlite" and url.database and not Path(url.database).is_file():
        raise CannotStart(
            "no_database",
            f"There is no database {url.database}. Name the directory of a running service in ENGINESMITH_DATA_DIR, or "
            "make a new database with `enginesmith migrate`.",
        )


def require_database(settings: Settings) -> None:
    """Raise CannotStart "no_database" if there is no file or no table, "database_unreachable" if nothing answers."""
    require_database_file(settings)
    database = Database(settings.database)
    try:
        if not sa.inspect(database.engine).has_table("jobs"):
            raise CannotStart("no_database", "The database has no tables yet. Run `enginesmith migrate` first.")
    except DATABASE_DOWN as error:
        raise unreachable(settings, error) from error
    finally:
        database.dispose()


def unreachable(settings: Settings, error: Exception) -> CannotStart:
    """Build the error for a database that does not answer."""
    cause = getattr(error, "orig", None) or error
    remedy = (
        "Check ENGINESMITH_DATABASE_URL."
        if settings.database_url
        else "Check ENGINESMITH_DATA_DIR and its disk's room."
    )
    return CannotStart("database_unreachable", f"The database does not answer: {cause}. {remedy}")

"""Alembic migrations: SQLite and PostgreSQL share one history."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import make_url


def upgrade(url: str) -> None:
    """Bring the database at a SQLAlchemy URL to the present schema; the directory of a SQLite file is made if missing.

    Processes that start together may all call this. One of them migrates; the others wait and find the work done.
    """
    address = make_url(url)
    if address.get_backend_name() == "sqlite" and address.database:
        Path(address.database).parent.mkdir(parents=True, exist_ok=True)
    command.upgrade(alembic_config(url), "head")


def alembic_config(url: str) -> Config:
    """Return an Alembic configuration for the database at a SQLAlchemy URL; no ini file is needed."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent))
    config.attributes["url"] = url
    return config

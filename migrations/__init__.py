"""Alembic migrations, one history for SQLite and PostgreSQL."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import make_url


def upgrade(url: str) -> None:
    """Bring the database at a SQLAlchemy URL to the present schema, making a SQLite file's directory if need be.

    Processes that start together may all call this: one migrates, the others wait for it and find it done.
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

"""Alembic migrations, one history for SQLite and PostgreSQL."""

from pathlib import Path

from alembic.config import Config


def alembic_config(url: str) -> Config:
    """Return an Alembic configuration for the database at a SQLAlchemy URL; no ini file is needed."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent))
    config.attributes["url"] = url
    return config

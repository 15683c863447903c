import sqlalchemy as sa
from alembic import command

from migrations import alembic_config


def test_the_migrations_give_the_tables_the_code_expects(database_url: str) -> None:
    command.check(alembic_config(database_url))  # raises where a table and its migration differ


def test_upgrading_again_changes_nothing(database_url: str) -> None:
    before = sa.inspect(sa.create_engine(database_url)).get_table_names()
    command.upgrade(alembic_config(database_url), "head")
    assert sa.inspect(sa.create_engine(database_url)).get_table_names() == before
    assert "jobs" in before

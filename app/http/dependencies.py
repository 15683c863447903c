"""The dependencies that endpoints of all slices may use."""

from collections.abc import Iterator
from typing import Annotated

from fastapi import Depends, Request
from sqlalchemy.orm import Session

from app.database import Database
from app.settings import Settings


def _settings(request: Request) -> Settings:
    settings: Settings = request.app.state.settings
    return settings


def _database(request: Request) -> Database:
    database: Database = request.app.state.database
    return database


def _session(request: Request) -> Iterator[Session]:
    database = _database(request)
    with database.reading() if request.method in {"GET", "HEAD"} else database.transaction() as session:
        yield session


SettingsDep = Annotated[Settings, Depends(_settings)]
DatabaseDep = Annotated[Database, Depends(_database)]
# The scope makes the transaction commit before the answer is sent, not after.
SessionDep = Annotated[Session, Depends(_session, scope="function")]

"""The dependencies that endpoints of all slices may use."""

from contextlib import AbstractContextManager
from typing import Annotated

from fastapi import Depends, Request
from sqlalchemy.orm import Session

from app.database import Database
from app.settings import Settings


async def _settings(request: Request) -> Settings:
    settings: Settings = request.app.state.settings
    return settings


async def _database(request: Request) -> Database:
    database: Database = request.app.state.database
    return database


async def _session(request: Request) -> AbstractContextManager[Session]:
    """Return what `Route` opens in the thread of the endpoint, and closes there before the answer is sent."""
    database: Database = request.app.state.database
    return database.reading() if request.method in {"GET", "HEAD"} else database.transaction()


SettingsDep = Annotated[Settings, Depends(_settings)]
DatabaseDep = Annotated[Database, Depends(_database)]
SessionDep = Annotated[Session, Depends(_session)]  # of endpoints that are no coroutines

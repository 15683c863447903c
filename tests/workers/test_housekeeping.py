import os
import socket
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from threading import Event

import pytest
from sqlalchemy import update
from sqlalchemy.exc import OperationalError

from app.artifacts import service as artifacts
from app.artifacts.tables import Blob
from app.database import Database, now
from app.fleet import service as fleet
from app.fleet.service import WorkerReport
from app.jobs import lease, service
from app.settings import Settings
from workers.housekeeping import Chore, bury_the_dead, housekeeping, keep_house, scrub_chores, sweeping
from workers.jobs.worker import Worker

Post = Callable[[], str]


def test_a_chore_that_fails_comes_round_again() -> None:
    over = Event()
    faults = [LookupError("a fault of our own"), OperationalError("SELECT 1", {}, ConnectionError("no database"))]

    def fail() -> None:
        if faults:
            raise faults.pop()
        over.set()

    keep_house([Chore("flaky", 0.0, fail)], over)
    assert faults == []


def test_a_worker_is_in_the_fleet_for_as_long_as_it_lives(
    worker: Worker, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    reported = Event()

    def report(database: Database, report: WorkerReport) -> None:
        write(database, report)
        reported.set()

    write = fleet.report
    monkeypatch.setattr(fleet, "report", report)
    with housekeeping(worker):
        assert reported.wait(10)
        with database.reading() as session:
            alive = fleet.alive(session, worker.settings)
        queues = ["enginesmith.onnxruntime", "enginesmith.onnxruntime.cpu"]
        assert [(one.id, one.queues) for one in alive] == [(worker.id, queues)]
    with database.reading() as session:
        assert fleet.alive(session, worker.settings) == []


def test_a_worker_frees_at_its_start_what_killed_ones_of_its_host_held(
    worker: Worker, database: Database, settings: Settings, post: Post
) -> None:
    dead = f"{socket.gethostname()}:{os.getpid()}:earlier"
    fleet.report(database, replace(worker.report(), id=dead))
    held = lease.claim(database, post(), worker=dead, settings=settings)
    assert held is not None
    worker.settings = settings.model_copy(update={"database_url": ""})

    bury_the_dead(worker)
    sweeping(worker)()

    with database.reading() as session:
        assert (service.get_job(session, held.job_id).state, fleet.alive(session, settings)) == ("queued", [])


def test_workers_of_a_database_server_are_left_to_their_leases(
    worker: Worker, database: Database, settings: Settings, post: Post
) -> None:
    dead = f"{socket.gethostname()}:{os.getpid()}:earlier"
    held = lease.claim(database, post(), worker=dead, settings=settings)
    assert held is not None
    worker.settings = settings.model_copy(update={"database_url": "postgresql+psycopg://elsewhere"})
    bury_the_dead(worker)
    assert lease.renew(database, held) == "running"


@pytest.mark.parametrize("period_s", [86_400.0, 0.0])
def test_a_worker_reads_what_is_stored_unless_it_is_told_not_to(
    worker: Worker, database: Database, *, period_s: float
) -> None:
    digest, size = worker.store.put_chunks([b"content"])  # type: ignore[attr-defined]  # the local store has it
    with database.transaction() as session:
        artifacts.record(session, digest, size)
        session.execute(update(Blob).values(seen_at=now() - timedelta(days=1), checked_at=now() - timedelta(days=1)))
    path = worker.store.unchecked_path(digest)
    path.chmod(0o644)
    path.write_bytes(b"Content")
    able = replace(worker, settings=worker.settings.model_copy(update={"scrub_period_s": period_s}))
    for chore in scrub_chores(able, Event()):
        chore.action()
    with database.reading() as session:
        blob = session.get_one(Blob, digest)
    assert (blob.damage, blob.found_by) == (("changed", "scrubber") if period_s else (None, None))


def test_an_outage_of_the_database_takes_no_job_from_a_worker_that_lives(
    worker: Worker, database: Database, settings: Settings, post: Post, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    held = lease.claim(database, post(), worker="another", settings=settings.model_copy(update={"lease_s": -1.0}))
    assert held is not None
    sweep_jobs = sweeping(worker)
    worker.database = Database("sqlite:////nowhere/enginesmith.db")
    with pytest.raises(OperationalError):
        sweep_jobs()
    worker.database = database

    def state() -> str:
        with database.reading() as session:
            return service.get_job(session, held.job_id).state

    sweep_jobs()
    assert state() == "running"
    clock[0] += settings.lease_s
    sweep_jobs()
    assert state() == "queued"

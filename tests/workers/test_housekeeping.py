import os
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import timedelta
from threading import Event

import pytest
import redis
from sqlalchemy import update

from app.artifacts import service as artifacts
from app.artifacts.tables import Blob
from app.database import Database, now
from app.fleet import service as fleet
from app.fleet.service import WorkerReport
from app.jobs import lease, service
from app.jobs.queue import queue_of
from app.settings import Settings
from workers.housekeeping import Chore, bury_the_dead, housekeeping, keep_house, scrub_chores, sweep_jobs
from workers.jobs.worker import Worker

Post = Callable[[], str]


@dataclass
class Recorder:
    """The broker's sending end, keeping what it is given."""

    sent: list[tuple[str, str]] = field(default_factory=list)

    def send(self, job_id: str, queue: str) -> bool:
        self.sent.append((job_id, queue))
        return True


def test_a_chore_that_fails_comes_round_again() -> None:
    over = Event()
    faults = [LookupError("a fault of our own"), redis.ConnectionError("no broker")]

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


def test_a_worker_sends_at_its_start_what_an_earlier_life_left_queued(worker: Worker, post: Post) -> None:
    queue = Recorder()
    worker.queue = queue
    worker.backlog = lambda _queue: 0
    job_id = post()
    sweep_jobs(worker, resend_after_s=worker.settings.resend_after_s)
    assert queue.sent == []
    sweep_jobs(worker, resend_after_s=0.0)
    assert queue.sent == [(job_id, queue_of("onnxruntime"))]


def test_a_worker_frees_at_its_start_what_killed_ones_of_its_host_held(
    worker: Worker, database: Database, settings: Settings, post: Post
) -> None:
    dead = f"{socket.gethostname()}:{os.getpid()}:earlier"
    fleet.report(database, replace(worker.report(), id=dead))
    held = lease.claim(database, post(), worker=dead, settings=settings)
    assert held is not None
    worker.settings = settings.model_copy(update={"database_url": ""})
    worker.queue, worker.backlog = Recorder(), lambda _queue: 0

    bury_the_dead(worker)
    sweep_jobs(worker, resend_after_s=0.0)

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


@pytest.mark.parametrize("period_s", [0.5, 0.0])
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
    over = Event()
    todo = scrub_chores(replace(worker, settings=worker.settings.model_copy(update={"scrub_period_s": period_s})), over)
    for chore in todo:
        end = threading.Timer(0.2, over.set)
        end.start()
        chore.action()
        end.join()
    with database.reading() as session:
        blob = session.get_one(Blob, digest)
    assert (blob.damage, blob.found_by) == (("changed", "scrubber") if period_s else (None, None))

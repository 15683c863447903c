"""Workers that vanish and messages that get lost."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from sqlalchemy import update

from app.database import Database, now
from app.jobs import events, lease
from app.jobs.lease import Claim, LeaseLost
from app.jobs.state import State
from app.jobs.sweep import Swept, let_go, sweep
from app.jobs.tables import Job
from app.settings import Settings

QUEUE = "enginesmith.onnxruntime"
MakeJob = Callable[..., str]


def claim(database: Database, job_id: str, settings: Settings) -> Claim:
    taken = lease.claim(database, job_id, worker="one", settings=settings)
    assert taken is not None
    return taken


def expire(database: Database, held: Claim) -> None:
    """Let the lease run out, as if the worker had been silent for all of it."""
    past = now() - timedelta(seconds=1)
    with database.transaction() as session:
        session.execute(update(Job).where(Job.id == held.job_id).values(lease_until=past))


def read(database: Database, job_id: str) -> Job:
    with database.reading() as session:
        return session.get_one(Job, job_id)


def test_a_job_whose_worker_vanished_is_queued_again(database: Database, queued: str, settings: Settings) -> None:
    held = claim(database, queued, settings)
    expire(database, held)
    assert sweep(database, settings) == Swept(requeued=1)
    assert claim(database, queued, settings).attempt == 2
    with pytest.raises(LeaseLost):
        lease.renew(database, held)
    with database.reading() as session:
        told = {event.type: event.data for event in events.list(session, queued, 0, 100)}
    assert told["lease_expired"] == {"worker": "one", "attempt": 1}


def test_a_lease_that_is_renewed_stays(database: Database, queued: str, settings: Settings) -> None:
    held = claim(database, queued, settings)
    assert sweep(database, settings) == Swept()
    assert lease.renew(database, held) is State.RUNNING


def test_a_job_that_loses_every_worker_fails_with_the_cause(
    database: Database, queued: str, settings: Settings
) -> None:
    for _ in range(settings.max_attempts):
        expire(database, claim(database, queued, settings))
        swept = sweep(database, settings)
    assert swept == Swept(failed=1)
    job = read(database, queued)
    assert job.state == State.FAILED
    assert job.error is not None
    assert job.error["code"] == "worker_lost"


def test_a_job_to_be_canceled_whose_worker_vanished_is_canceled(
    database: Database, queued: str, settings: Settings
) -> None:
    held = claim(database, queued, settings)
    with database.transaction() as session:
        lease.request_cancel(session, queued)
    expire(database, held)
    assert sweep(database, settings) == Swept(canceled=1)
    assert read(database, queued).state == State.CANCELED


def test_what_a_worker_known_to_be_gone_held_is_taken_back_before_its_lease_runs_out(
    database: Database, make_job: MakeJob, settings: Settings
) -> None:
    left, kept = make_job(), make_job()
    claim(database, left, settings)
    held = lease.claim(database, kept, worker="two", settings=settings)
    assert held is not None
    assert let_go(database, lambda worker: worker == "one") == 1
    assert sweep(database, settings) == Swept(requeued=1)
    assert read(database, left).state == State.QUEUED
    assert lease.renew(database, held) is State.RUNNING


def test_sweeps_at_the_same_time_move_a_job_once(database: Database, make_job: MakeJob, settings: Settings) -> None:
    ids = [make_job() for _ in range(20)]
    for job_id in ids:
        expire(database, claim(database, job_id, settings))
    with ThreadPoolExecutor(4) as pool:
        swept = list(pool.map(lambda _: sweep(database, settings), range(4)))
    assert sum(each.requeued for each in swept) == len(ids)

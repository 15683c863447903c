"""Workers that vanish and messages that get lost."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import timedelta

import pytest
import redis
from sqlalchemy import update

from app.database import Database, now
from app.jobs import events, lease
from app.jobs.lease import Claim, LeaseLost
from app.jobs.queue import JobQueue, queue_of
from app.jobs.state import State
from app.jobs.sweep import Backlog, Swept, let_go, sweep
from app.jobs.tables import Job
from app.settings import Settings

QUEUE = "enginesmith.onnxruntime"
MakeJob = Callable[..., str]


@dataclass
class Recorder:
    """A broker that keeps what it is sent, with as many messages waiting as the test says."""

    sent: list[tuple[str, str]] = field(default_factory=list)
    waiting: int = 0

    def send(self, job_id: str, queue: str) -> bool:
        self.sent.append((job_id, queue))
        return True

    def backlog(self, _queue: str) -> int:
        return self.waiting


@pytest.fixture
def broker() -> Recorder:
    return Recorder()


def clean_up(database: Database, broker: Recorder, settings: Settings) -> Swept:
    return sweep(
        database, broker, settings, queues=[QUEUE], backlog=broker.backlog, resend_after_s=settings.resend_after_s
    )


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


def long_ago(settings: Settings) -> dict[str, object]:
    return {"sent_at": now() - timedelta(seconds=settings.resend_after_s + 1)}


def test_a_job_whose_worker_vanished_is_queued_and_sent_again(
    database: Database, queued: str, settings: Settings, broker: Recorder
) -> None:
    held = claim(database, queued, settings)
    expire(database, held)
    assert clean_up(database, broker, settings) == Swept(requeued=1, sent=1)
    assert broker.sent == [(queued, QUEUE)]
    assert claim(database, queued, settings).attempt == 2
    with pytest.raises(LeaseLost):
        lease.renew(database, held)
    with database.reading() as session:
        told = {event.type: event.data for event in events.list(session, queued, 0, 100)}
    assert told["lease_expired"] == {"worker": "one", "attempt": 1}


def test_a_lease_that_is_renewed_stays(database: Database, queued: str, settings: Settings, broker: Recorder) -> None:
    held = claim(database, queued, settings)
    assert clean_up(database, broker, settings) == Swept()
    assert lease.renew(database, held) is State.RUNNING


def test_a_job_that_loses_every_worker_fails_with_the_cause(
    database: Database, queued: str, settings: Settings, broker: Recorder
) -> None:
    for _ in range(settings.max_attempts):
        expire(database, claim(database, queued, settings))
        swept = clean_up(database, broker, settings)
    assert swept == Swept(failed=1)
    job = read(database, queued)
    assert job.state == State.FAILED
    assert job.error is not None
    assert job.error["code"] == "worker_lost"


def test_a_job_to_be_canceled_whose_worker_vanished_is_canceled(
    database: Database, queued: str, settings: Settings, broker: Recorder
) -> None:
    held = claim(database, queued, settings)
    with database.transaction() as session:
        lease.request_cancel(session, queued)
    expire(database, held)
    assert clean_up(database, broker, settings) == Swept(canceled=1)
    assert read(database, queued).state == State.CANCELED


def test_a_job_that_was_never_sent_is_sent_once(
    database: Database, make_job: MakeJob, settings: Settings, broker: Recorder
) -> None:
    job_id = make_job(sent_at=None)
    broker.waiting = 7
    assert clean_up(database, broker, settings).sent == 1
    assert clean_up(database, broker, settings).sent == 0
    assert broker.sent == [(job_id, QUEUE)]


def test_a_worker_sends_the_jobs_of_its_platforms_and_no_others(
    database: Database, make_job: MakeJob, settings: Settings, broker: Recorder
) -> None:
    mine, anyones, anothers = (queue_of("tensorrt", platform) for platform in ("8.6.1/H100", None, "8.6.1/A100"))
    sent = {(make_job(queue=queue), queue) for queue in (mine, anyones)}
    make_job(queue=anothers)
    queues = [mine, anyones]
    swept = sweep(database, broker, settings, queues=queues, backlog=broker.backlog, resend_after_s=60.0)
    assert swept == Swept(sent=2)
    assert set(broker.sent) == sent


def test_a_job_whose_message_is_lost_is_sent_again(
    database: Database, make_job: MakeJob, settings: Settings, broker: Recorder
) -> None:
    make_job(sent_at=now())
    lost = make_job(**long_ago(settings))
    clean_up(database, broker, settings)
    assert broker.sent == [(lost, QUEUE)]


def test_a_long_queue_is_not_sent_again_while_messages_wait(
    database: Database, make_job: MakeJob, settings: Settings, broker: Recorder
) -> None:
    make_job(**long_ago(settings))
    broker.waiting = 1
    assert clean_up(database, broker, settings).sent == 0


def test_a_message_that_later_ones_overtook_is_lost_however_long_the_queue(
    database: Database, make_job: MakeJob, settings: Settings, broker: Recorder
) -> None:
    delay = timedelta(seconds=settings.resend_after_s)
    lost = make_job(sent_at=now() - 3 * delay)
    make_job(**long_ago(settings))  # this one may well still wait
    claim(database, make_job(sent_at=now() - delay), settings)
    broker.waiting = 1
    assert clean_up(database, broker, settings).sent == 1
    assert broker.sent == [(lost, QUEUE)]


def test_nothing_counts_as_sent_while_the_broker_is_down(
    database: Database, make_job: MakeJob, settings: Settings, broker: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def down(_queue: str) -> int:
        raise redis.ConnectionError("no broker")

    job_id = make_job(sent_at=None)
    monkeypatch.setattr(broker, "backlog", down)
    with pytest.raises(redis.ConnectionError):
        clean_up(database, broker, settings)
    assert read(database, job_id).sent_at is None


def test_what_a_worker_known_to_be_gone_held_is_taken_back_before_its_lease_runs_out(
    database: Database, make_job: MakeJob, settings: Settings, broker: Recorder
) -> None:
    left, kept = make_job(sent_at=now()), make_job(sent_at=now())
    claim(database, left, settings)
    held = lease.claim(database, kept, worker="two", settings=settings)
    assert held is not None
    assert let_go(database, lambda worker: worker == "one") == 1
    assert clean_up(database, broker, settings) == Swept(requeued=1, sent=1)
    assert read(database, left).state == State.QUEUED
    assert lease.renew(database, held) is State.RUNNING


def test_another_devices_jobs_are_left_to_its_own_workers(
    database: Database, make_job: MakeJob, settings: Settings, broker: Recorder
) -> None:
    make_job(sent_at=None, queue="enginesmith.tensorrt")
    assert clean_up(database, broker, settings).sent == 0


def test_sweeps_at_the_same_time_move_a_job_once(
    database: Database, make_job: MakeJob, settings: Settings, broker: Recorder
) -> None:
    ids = {make_job(sent_at=None) for _ in range(20)}
    with ThreadPoolExecutor(4) as pool:
        swept = list(pool.map(lambda _: clean_up(database, broker, settings), range(4)))
    assert sum(each.sent for each in swept) == len(ids)
    assert sorted(job_id for job_id, _ in broker.sent) == sorted(ids)


def test_the_backlog_is_what_waits_in_the_broker(settings: Settings) -> None:
    backlog = Backlog(settings.broker_url)
    queue = JobQueue(settings.broker_url)
    name = f"enginesmith.{settings.data_dir.name}"
    assert backlog(name) == 0
    queue.send("a job", name)
    assert backlog(name) == 1
    queue.close()

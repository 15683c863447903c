"""Several workers, one job: who may write what."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
from sqlalchemy import Connection, event

from app.database import Database, now
from app.jobs import events, lease
from app.jobs.events import Event
from app.jobs.lease import CancelAsked, Claim, JobError, JobProgress, LeaseLost
from app.jobs.state import State
from app.jobs.tables import Job
from app.settings import Settings

PARALLEL = 8
FULL = 2  # what SQLite calls it in numbers


@pytest.fixture
def held(database: Database, queued: str, settings: Settings) -> Claim:
    return claim(database, queued, settings)


def claim(database: Database, job_id: str, settings: Settings, worker: str = "one") -> Claim:
    taken = lease.claim(database, job_id, worker=worker, settings=settings)
    assert taken is not None
    return taken


def read(database: Database, job_id: str) -> Job:
    with database.reading() as session:
        return session.get_one(Job, job_id)


def told(database: Database, job_id: str) -> list[str]:
    with database.reading() as session:
        return [event.type for event in events.list(session, job_id, 0, 100)]


def ask_cancel(database: Database, job_id: str) -> None:
    with database.transaction() as session:
        lease.request_cancel(session, job_id)


def take_over(database: Database, held: Claim, settings: Settings) -> Claim:
    """Let another worker have the job, as a sweep would after the lease ran out."""
    lease.release(database, held, "its lease ran out")
    return claim(database, held.job_id, settings, worker="two")


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_claim_and_a_renewal_without_news_do_not_wait_for_the_disk(
    database: Database, queued: str, settings: Settings
) -> None:
    waited: list[bool] = []

    def look(connection: Connection) -> None:
        waited.append(connection.exec_driver_sql("PRAGMA synchronous").scalar_one() == FULL)

    event.listen(database.engine, "commit", look)
    taken = claim(database, queued, settings)
    lease.renew(database, taken)
    lease.renew(database, taken, events=[Event("phase", {"phase": "compile"})])
    with database.transaction() as session:
        lease.succeed(session, taken, {})
    assert waited == [False, False, True, True]


def test_a_claim_carries_what_the_job_is(database: Database, queued: str, settings: Settings) -> None:
    taken = claim(database, queued, settings)
    assert (taken.kind, taken.fence, taken.attempt, taken.request) == ("run", 1, 1, {"engine_id": 1})
    job = read(database, queued)
    assert (job.state, job.worker) == (State.RUNNING, "one")
    assert job.started_at is not None
    assert job.lease_until is not None
    assert job.lease_until > now()


def test_of_parallel_claims_exactly_one_wins(database: Database, queued: str, settings: Settings) -> None:
    start = Barrier(PARALLEL)

    def attempt(number: int) -> Claim | None:
        start.wait()
        return lease.claim(database, queued, worker=str(number), settings=settings)

    with ThreadPoolExecutor(PARALLEL) as pool:
        claims = [taken for taken in pool.map(attempt, range(PARALLEL)) if taken is not None]
    assert len(claims) == 1
    job = read(database, queued)
    assert (job.worker, job.fence, job.attempt) == (claims[0].worker, 1, 1)


def test_an_unknown_job_is_not_claimed(database: Database, settings: Settings) -> None:
    assert lease.claim(database, "no such job", worker="one", settings=settings) is None


def test_renewing_extends_the_lease_and_writes_progress_and_events(database: Database, held: Claim) -> None:
    before = read(database, held.job_id).lease_until
    news = [Event("log", {"lines": ["a"]}), Event("log", {"lines": ["b"]})]
    state = lease.renew(database, held, progress=JobProgress("compile", 3, 7), events=news)
    job = read(database, held.job_id)
    assert state is State.RUNNING
    assert (job.phase, job.step, job.total) == ("compile", 3, 7)
    assert job.lease_until is not None
    assert before is not None
    assert job.lease_until > before
    assert told(database, held.job_id) == ["queued", "running", "log", "log"]


def test_renewing_says_when_the_job_is_to_stop(database: Database, held: Claim) -> None:
    ask_cancel(database, held.job_id)
    assert lease.renew(database, held) is State.CANCELING
    assert lease.state_of(database, held) is State.CANCELING


def test_the_result_and_what_it_publishes_are_committed_together(database: Database, held: Claim) -> None:
    with database.reading() as session:  # never committed: whatever was to be published has failed
        lease.succeed(session, held, {"engine": 1})
    assert read(database, held.job_id).state == State.RUNNING
    with database.transaction() as session:
        lease.succeed(session, held, {"engine": 1}, events=[Event("log", {"lines": ["last"]})])
    job = read(database, held.job_id)
    assert (job.state, job.result, job.lease_until) == (State.SUCCEEDED, {"engine": 1}, None)
    assert job.finished_at is not None
    assert told(database, held.job_id) == ["queued", "running", "log", "succeeded"]


@pytest.mark.parametrize("call", ["renew", "state_of", "fail", "cancel", "release", "retry", "succeed"])
def test_a_worker_whose_lease_was_taken_over_changes_nothing(
    database: Database, held: Claim, settings: Settings, call: str
) -> None:
    take_over(database, held, settings)
    events_before = told(database, held.job_id)
    error = JobError("late", "too late")
    late: dict[str, Callable[[], object]] = {
        "renew": lambda: lease.renew(database, held, progress=JobProgress("late"), events=[Event("log")]),
        "state_of": lambda: lease.state_of(database, held),
        "fail": lambda: lease.fail(database, held, error),
        "cancel": lambda: lease.cancel(database, held),
        "release": lambda: lease.release(database, held, "late"),
        "retry": lambda: lease.retry(database, held, error),
        "succeed": lambda: _succeed(database, held),
    }
    with pytest.raises(LeaseLost):
        late[call]()
    job = read(database, held.job_id)
    assert (job.state, job.worker, job.phase, job.error) == (State.RUNNING, "two", None, None)
    assert told(database, held.job_id) == events_before


def test_a_released_job_is_queued_and_its_attempt_not_counted(
    database: Database, held: Claim, settings: Settings
) -> None:
    lease.release(database, held, "worker stops")
    job = read(database, held.job_id)
    assert (job.state, job.attempt, job.worker) == (State.QUEUED, 0, None)
    again = claim(database, held.job_id, settings, worker="two")
    assert (again.fence, again.attempt) == (2, 1)


def test_a_retried_job_is_queued_and_its_attempt_counted(database: Database, held: Claim, settings: Settings) -> None:
    lease.retry(database, held, JobError("unavailable", "the store does not answer"))
    assert read(database, held.job_id).state == State.QUEUED
    assert claim(database, held.job_id, settings).attempt == 2
    assert told(database, held.job_id) == ["queued", "running", "retried", "running"]


def test_a_failed_job_says_why(database: Database, held: Claim) -> None:
    error = JobError("verification_failed", "too far off", figures={"logits": {"max_abs": 1.5}})
    lease.fail(database, held, error, events=[Event("log", {"lines": ["last words"]})])
    job = read(database, held.job_id)
    assert job.state == State.FAILED
    assert job.error == {
        "code": "verification_failed",
        "detail": "too far off",
        "figures": {"logits": {"max_abs": 1.5}},
    }
    assert told(database, held.job_id) == ["queued", "running", "log", "failed"]


def test_a_queued_job_is_canceled_at_once_and_never_claimed(
    database: Database, queued: str, settings: Settings
) -> None:
    ask_cancel(database, queued)
    assert read(database, queued).state == State.CANCELED
    assert lease.claim(database, queued, worker="one", settings=settings) is None


def test_asking_to_cancel_twice_is_asking_once(database: Database, held: Claim) -> None:
    ask_cancel(database, held.job_id)
    ask_cancel(database, held.job_id)
    assert told(database, held.job_id) == ["queued", "running", "canceling"]


def test_a_finished_job_stays_as_it_is_when_its_cancel_is_asked(database: Database, held: Claim) -> None:
    _succeed(database, held)
    ask_cancel(database, held.job_id)
    assert read(database, held.job_id).state == State.SUCCEEDED


def test_a_result_that_comes_after_the_cancel_is_not_published(database: Database, held: Claim) -> None:
    ask_cancel(database, held.job_id)
    with pytest.raises(CancelAsked):
        _succeed(database, held)
    lease.cancel(database, held)
    job = read(database, held.job_id)
    assert (job.state, job.result) == (State.CANCELED, None)


@pytest.mark.parametrize("ending", ["fail", "release", "retry"])
def test_whatever_ends_a_job_after_its_cancel_it_ends_canceled(database: Database, held: Claim, ending: str) -> None:
    ask_cancel(database, held.job_id)
    if ending == "release":
        lease.release(database, held, "worker stops")
    else:
        getattr(lease, ending)(database, held, JobError("unavailable", "the store does not answer"))
    job = read(database, held.job_id)
    assert (job.state, job.error) == (State.CANCELED, None)
    assert told(database, held.job_id) == ["queued", "running", "canceling", "canceled"]


def test_whoever_waits_is_told_of_each_change_after_it_is_committed(
    database: Database, queued: str, settings: Settings
) -> None:
    seen: list[tuple[str, str, str]] = []

    def notify(job_id: str, state: State) -> None:
        seen.append((job_id, state, read(database, job_id).state))

    taken = lease.claim(database, queued, worker="one", settings=settings, notify=notify)
    assert taken is not None
    lease.renew(database, taken, notify=notify)  # nothing new: nobody is told
    lease.renew(database, taken, progress=JobProgress("compile"), notify=notify)
    with database.transaction() as session:
        lease.succeed(session, taken, {}, notify=notify)
    states = (State.RUNNING, State.RUNNING, State.SUCCEEDED)
    assert seen == [(queued, state, state) for state in states]


def test_a_broker_that_is_down_fails_no_lease_call(database: Database, queued: str, settings: Settings) -> None:
    def notify(_job_id: str, _state: State) -> None:
        raise ConnectionError("no broker")

    taken = lease.claim(database, queued, worker="one", settings=settings, notify=notify)
    assert taken is not None
    lease.fail(database, taken, JobError("broken", "it broke"), notify=notify)
    assert read(database, queued).state == State.FAILED


def test_events_are_numbered_without_a_gap_whoever_writes_them(database: Database, held: Claim) -> None:
    start = Barrier(PARALLEL)

    def write(number: int) -> None:
        start.wait()
        with database.transaction() as session:
            events.append(session, held.job_id, "note", {"writer": number})
        lease.renew(database, held, events=[Event("log", {"lines": [str(number)]})] * 2)

    with ThreadPoolExecutor(PARALLEL) as pool:
        list(pool.map(write, range(PARALLEL)))
    with database.reading() as session:
        numbers = [event.seq for event in events.list(session, held.job_id, 0, 1000)]
    assert numbers == list(range(1, 3 + 3 * PARALLEL))


def test_an_event_rolled_back_leaves_no_gap(database: Database, held: Claim) -> None:
    with database.reading() as session:  # never committed
        events.append(session, held.job_id, "note", {})
    with database.transaction() as session:
        assert events.append(session, held.job_id, "note", {}) == 3


def test_events_can_be_read_on_from_any_number(database: Database, held: Claim) -> None:
    lease.renew(database, held, events=[Event("log", {"lines": [str(line)]}) for line in range(5)])
    with database.reading() as session:
        page = events.list(session, held.job_id, after=2, limit=3)
    assert [event.seq for event in page] == [3, 4, 5]
    assert page[0].data == {"lines": ["0"]}


def _succeed(database: Database, held: Claim) -> None:
    with database.transaction() as session:
        lease.succeed(session, held, {"engine": 1})

"""How a job ends, whatever happens to it. The work itself is a stand-in that each test scripts."""

import errno
import hashlib
import os
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from app.artifacts import service
from app.artifacts.local import LocalStore
from app.artifacts.service import collect_orphans
from app.artifacts.store import ArtifactStore
from app.artifacts.tables import Blob
from app.database import DATABASE_DOWN, Database, now
from app.engines.work import RunWork
from app.errors import Invalid, Unavailable
from app.jobs import events, lease
from app.jobs.lease import Claim
from app.jobs.outage import LEAST_TRIES
from app.jobs.state import State
from app.jobs.tables import Job, JobEvent
from workers.channel.host import EngineHostDied, EngineHostNotStarted
from workers.channel.messages import BackendError, LogLine, Progress
from workers.consuming import do_job, do_ready_job
from workers.jobs import kinds, watch
from workers.jobs.attempt import run_job
from workers.jobs.crashes import Crash
from workers.jobs.faults import VerificationFailed
from workers.jobs.memory_deaths import EngineHostOutOfMemory
from workers.jobs.news import MAX_LINES
from workers.jobs.steps import Ready, Steps
from workers.jobs.watch import Watch
from workers.jobs.worker import PUT_OUTAGE_S, Worker

Post = Callable[[], str]
Step = Callable[[Worker, Watch], None]
CONTENT = b"what the stand-in makes"
DIGEST = "sha256:" + hashlib.sha256(CONTENT).hexdigest()


@dataclass(frozen=True)
class Made:
    """What the stand-in has put into the store."""

    blobs: Mapping[str, int]


@pytest.fixture
def does(monkeypatch: pytest.MonkeyPatch) -> Callable[[Step], None]:
    """Say what "run" jobs do while they compute."""

    def script(step: Step) -> None:
        def compute(_job: str, worker: Worker, watch: Watch) -> Made:
            step(worker, watch)
            digest, size = worker.put(made_in(watch.folder))
            return Made({digest: size})

        monkeypatch.setitem(kinds.KINDS, "run", Steps(RunWork, _load, compute, _publish))

    return script


@pytest.fixture
def pauses(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long the worker would have waited for its database, each time; here it does not wait."""
    pauses: list[float] = []
    monkeypatch.setattr(worker.stopping, "wait", pauses.append)
    return pauses


@pytest.fixture
def away() -> Database:
    """A database that does not answer."""
    return Database("sqlite:////nowhere/enginesmith.db")


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every tick look and tell, instead of now and then."""
    monkeypatch.setattr(watch, "TICK_S", 0.0)
    monkeypatch.setattr(watch, "NEWS_S", 0.0)


def _load(_session: Session, held: Claim, _work: RunWork, _worker: Worker) -> str:
    return held.job_id


def _publish(_session: Session, _held: Claim, _job: str, made: Made) -> dict[str, Any]:
    return {"outputs": next(iter(made.blobs))}


def made_in(folder: Path) -> Path:
    path = folder / "made"
    path.write_bytes(CONTENT)
    return path


def read(database: Database, job_id: str) -> Job:
    with database.reading() as session:
        return session.get_one(Job, job_id)


def history(database: Database, job_id: str) -> list[JobEvent]:
    with database.reading() as session:
        return list(events.list(session, job_id, 0, 100))


def told(database: Database, job_id: str) -> list[str]:
    return [event.type for event in history(database, job_id)]


def blob_is_recorded(database: Database) -> bool:
    with database.reading() as session:
        return session.get(Blob, DIGEST) is not None


def raising(error: Exception) -> Step:
    def step(_worker: Worker, _watch: Watch) -> None:
        raise error

    return step


def test_a_job_that_is_done_publishes_and_succeeds(worker: Worker, post: Post, does: Callable[[Step], None]) -> None:
    does(lambda _worker, watch: watch.news.hear(LogLine("info", "optimised 412 nodes")))
    job_id = post()
    run_job(worker, job_id)
    job = read(worker.database, job_id)
    assert (job.state, job.result, job.attempt) == (State.SUCCEEDED, {"outputs": DIGEST}, 1)
    assert told(worker.database, job_id) == ["queued", "running", "log", "succeeded"]
    assert blob_is_recorded(worker.database)
    assert worker.job_id is None


def test_a_message_that_comes_twice_does_the_job_once(worker: Worker, post: Post, does: Callable[[Step], None]) -> None:
    done: list[str] = []
    does(lambda worker, _watch: done.append(str(worker.job_id)))
    job_id = post()
    run_job(worker, job_id)
    run_job(worker, job_id)
    assert done == [job_id]


def test_a_result_that_is_there_already_computes_nothing(
    worker: Worker, post: Post, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(_session: Session, _held: Claim, _work: RunWork, _worker: Worker) -> Ready:
        return Ready({"engine": 7, "reused": True})

    def compute(_job: str, _worker: Worker, _watch: Watch) -> Made:
        raise LookupError("computed")

    monkeypatch.setitem(kinds.KINDS, "run", Steps(RunWork, load, compute, _publish))
    job_id = post()
    run_job(worker, job_id)
    assert read(worker.database, job_id).result == {"engine": 7, "reused": True}


@pytest.mark.parametrize("ready", [False, True])
def test_a_job_that_computed_nothing_says_nothing_of_like_ones(
    worker: Worker, post: Post, monkeypatch: pytest.MonkeyPatch, *, ready: bool
) -> None:
    def load(_session: Session, held: Claim, _work: RunWork, _worker: Worker) -> str | Ready:
        return Ready({}) if ready else held.job_id

    def compute(_job: str, _worker: Worker, _watch: Watch) -> Made:
        return Made({DIGEST: len(CONTENT)})

    monkeypatch.setitem(kinds.KINDS, "run", Steps(RunWork, load, compute, _publish))
    job_id = post()
    of_job = select(Job.likeness).where(Job.id == job_id)
    with worker.database.transaction() as session:
        session.get_one(Job, job_id).likeness = "like"
    run_job(worker, job_id)
    with worker.database.reading() as session:
        assert session.scalar(of_job) == (None if ready else "like")


@pytest.mark.usefixtures("impatient")
def test_progress_and_log_can_be_followed_while_the_job_runs(
    worker: Worker, post: Post, does: Callable[[Step], None]
) -> None:
    seen: list[tuple[str | None, int | None, list[str]]] = []

    def step(worker: Worker, watch: Watch) -> None:
        watch.news.hear(Progress("compile", 1, 4))
        watch.news.hear(LogLine("info", "first"))
        watch.news.hear(LogLine("info", "second"))
        watch.tick()
        job = read(worker.database, str(worker.job_id))
        seen.append((job.phase, job.step, told(worker.database, job.id)))

    does(step)
    job_id = post()
    run_job(worker, job_id)
    assert seen == [("compile", 1, ["queued", "running", "phase", "log"])]
    assert history(worker.database, job_id)[3].data == {"level": "info", "lines": ["first", "second"]}
    assert told(worker.database, job_id)[-2:] == ["log", "succeeded"]


def test_a_log_without_end_is_cut_off_and_says_so(worker: Worker, post: Post, does: Callable[[Step], None]) -> None:
    def step(_worker: Worker, watch: Watch) -> None:
        for number in range(MAX_LINES + 500):
            watch.news.hear(LogLine("info", str(number)))

    does(step)
    job_id = post()
    run_job(worker, job_id)
    logs = [event.data for event in history(worker.database, job_id) if event.type == "log"]
    assert [len(log["lines"]) for log in logs] == [MAX_LINES, 1]
    assert "left out" in logs[1]["lines"][0]


@pytest.mark.usefixtures("impatient")
def test_a_canceled_job_stops_and_publishes_nothing(worker: Worker, post: Post, does: Callable[[Step], None]) -> None:
    job_id = post()

    def step(worker: Worker, watch: Watch) -> None:
        _ask_cancel(worker.database, job_id)
        watch.tick()

    does(step)
    run_job(worker, job_id)
    assert read(worker.database, job_id).state == State.CANCELED
    assert not blob_is_recorded(worker.database)


def test_a_cancel_that_comes_just_before_the_result_wins(
    worker: Worker, post: Post, does: Callable[[Step], None]
) -> None:
    job_id = post()
    does(lambda worker, _watch: _ask_cancel(worker.database, job_id))
    run_job(worker, job_id)
    job = read(worker.database, job_id)
    assert (job.state, job.result) == (State.CANCELED, None)
    assert blob_is_recorded(worker.database)  # so that it is collected: nothing refers to it


def test_a_worker_that_is_to_end_gives_its_job_back(worker: Worker, post: Post, does: Callable[[Step], None]) -> None:
    def step(worker: Worker, watch: Watch) -> None:
        worker.stopping.set()
        watch.tick()

    does(step)
    job_id = post()
    run_job(worker, job_id)
    job = read(worker.database, job_id)
    assert (job.state, job.attempt, job.worker) == (State.QUEUED, 0, None)
    assert told(worker.database, job_id)[-1] == "released"


def test_an_engine_host_that_ends_with_its_worker_costs_no_attempt(
    worker: Worker, post: Post, does: Callable[[Step], None]
) -> None:
    def step(worker: Worker, _watch: Watch) -> None:
        worker.stopping.set()
        raise EngineHostDied("killed by SIGTERM")

    does(step)
    job_id = post()
    run_job(worker, job_id)
    job = read(worker.database, job_id)
    assert (job.state, job.attempt) == (State.QUEUED, 0)


def test_a_worker_that_is_to_end_claims_nothing(worker: Worker, post: Post) -> None:
    worker.stopping.set()
    job_id = post()
    run_job(worker, job_id)
    assert told(worker.database, job_id) == ["queued"]


@pytest.mark.usefixtures("impatient")
def test_a_worker_whose_lease_was_lost_stops_and_changes_nothing(
    worker: Worker, post: Post, does: Callable[[Step], None]
) -> None:
    job_id = post()

    def step(worker: Worker, watch: Watch) -> None:
        _take_over(worker, job_id)
        watch.tick()

    does(step)
    run_job(worker, job_id)
    job = read(worker.database, job_id)
    assert (job.state, job.worker) == (State.RUNNING, "another")


def test_a_late_result_is_thrown_away_and_its_artifact_left_to_collection(
    worker: Worker, post: Post, does: Callable[[Step], None]
) -> None:
    job_id = post()
    does(lambda worker, _watch: _take_over(worker, job_id))
    run_job(worker, job_id)
    job = read(worker.database, job_id)
    assert (job.state, job.worker, job.result) == (State.RUNNING, "another", None)
    assert blob_is_recorded(worker.database)


def test_a_job_past_its_deadline_fails(worker: Worker, post: Post, does: Callable[[Step], None]) -> None:
    worker.settings = worker.settings.model_copy(update={"job_deadline_s": 0.0})
    does(lambda _worker, watch: watch.tick())
    job_id = post()
    run_job(worker, job_id)
    job = read(worker.database, job_id)
    assert job.error is not None
    assert (job.state, job.error["code"]) == (State.FAILED, "deadline_exceeded")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (BackendError("unsupported_operator", "no kernel for Foo"), "unsupported_operator"),
        (VerificationFailed("too far off", {"logits": {"max_abs": 3.0}}), "verification_failed"),
        (Invalid("bad weights", code="weights_damaged"), "weights_damaged"),
        (LookupError("a fault of our own"), "internal_error"),
    ],
)
def test_a_fault_that_will_come_again_fails_the_job_at_once(
    worker: Worker, post: Post, does: Callable[[Step], None], error: Exception, code: str
) -> None:
    does(raising(error))
    job_id = post()
    run_job(worker, job_id)
    job = read(worker.database, job_id)
    assert job.error is not None
    assert (job.state, job.attempt, job.error["code"]) == (State.FAILED, 1, code)


def test_a_failed_verification_says_how_far_off_it_was(
    worker: Worker, post: Post, does: Callable[[Step], None]
) -> None:
    does(raising(VerificationFailed("too far off", {"logits": {"max_abs": 3.0}})))
    job_id = post()
    run_job(worker, job_id)
    error = read(worker.database, job_id).error
    assert error is not None
    assert error["figures"] == {"logits": {"max_abs": 3.0}}


@pytest.mark.parametrize(
    ("error", "detail"),
    [
        (Unavailable("it was damaged", code="copy_damaged"), "it was damaged"),
        (OSError("odd"), "odd"),
        (BackendError("file_failed", "No such file"), "No such file"),
        (BackendError("file_failed", f"Refused: {os.strerror(errno.EACCES)}"), os.strerror(errno.EACCES)),
        (BackendError("file_failed", f"Refused: {os.strerror(errno.EPERM)}"), os.strerror(errno.EPERM)),
    ],
)
def test_a_fault_that_may_pass_is_tried_again_and_then_fails_with_its_cause(
    worker: Worker, post: Post, does: Callable[[Step], None], error: Exception, detail: str
) -> None:
    does(raising(error))
    job_id = post()
    states = []
    for _ in range(worker.settings.max_attempts):
        run_job(worker, job_id)
        states.append(read(worker.database, job_id).state)
    assert states == [State.QUEUED, State.QUEUED, State.FAILED]
    job = read(worker.database, job_id)
    assert job.error is not None
    assert detail in job.error["detail"]


OUTAGES = [
    Unavailable("The store does not answer.", code="store_unavailable"),
    Unavailable("The store is full.", code="store_full"),
    Unavailable("The store is read-only.", code="store_read_only"),
    OSError(errno.EIO, "Input/output error"),
    ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"),
    OperationalError("SELECT", {}, ConnectionError("server closed the connection")),
    BackendError("file_failed", f"Writing failed: {os.strerror(errno.ENOSPC)}"),
    EngineHostNotStarted("The engine host was killed by SIGKILL.", status=-9),
]


@pytest.mark.parametrize("error", OUTAGES, ids=repr)
def test_an_outage_costs_no_attempt_and_is_told_and_waited_for(
    worker: Worker, post: Post, does: Callable[[Step], None], error: Exception
) -> None:
    does(raising(error))
    job_id = post()
    for times in range(1, worker.settings.max_attempts + 2):
        assert run_job(worker, job_id)
        assert not run_job(worker, job_id)  # its pause is not over
        job = read(worker.database, job_id)
        assert job.outage is not None
        assert (job.state, job.attempt, job.outage["times"]) == (State.QUEUED, 0, times)
        assert told(worker.database, job_id)[-1] == "put_off"
        _end_pause(worker, job_id)
    does(lambda _worker, _watch: None)
    assert run_job(worker, job_id)
    job = read(worker.database, job_id)
    assert (job.state, job.attempt, job.outage) == (State.SUCCEEDED, 1, None)


def test_an_outage_without_end_fails_the_job_with_its_cause(
    worker: Worker, post: Post, does: Callable[[Step], None]
) -> None:
    does(raising(Unavailable("The store does not answer.", code="store_unavailable")))
    worker.settings = worker.settings.model_copy(update={"outage_limit_s": 1e-9})
    job_id = post()
    states = []
    for _ in range(LEAST_TRIES):
        run_job(worker, job_id)
        _end_pause(worker, job_id)
        states.append(read(worker.database, job_id).state)
    assert states == [State.QUEUED, State.QUEUED, State.FAILED]
    error = read(worker.database, job_id).error
    assert error is not None
    assert error["code"] == "store_unavailable"


def test_two_deaths_of_the_engine_host_are_the_jobs_fault(
    worker: Worker, post: Post, does: Callable[[Step], None]
) -> None:
    does(raising(EngineHostDied("The engine host was killed by SIGSEGV.", ["last words"], status=-11)))
    job_id = post()
    assert (run_job(worker, job_id), read(worker.database, job_id).state) == (True, State.QUEUED)
    run_job(worker, job_id)
    job = read(worker.database, job_id)
    assert job.error is not None
    assert (job.state, job.attempt, job.error["code"]) == (State.FAILED, 2, "engine_host_died_twice")
    assert "SIGSEGV" in job.error["detail"]
    assert job.error["log"] == ["last words"]


SEGV, KILL = -signal.SIGSEGV, -signal.SIGKILL


@pytest.mark.parametrize(
    ("statuses", "compiling", "marked"),
    [
        ((SEGV, SEGV), (True, True), True),
        ((KILL, SEGV), (True, True), False),
        ((SEGV, KILL), (True, True), False),
        ((SEGV, SEGV), (True, False), False),
        ((SEGV, SEGV), (False, True), False),
    ],
)
def test_only_two_crashes_of_the_compiler_itself_are_taken_down(
    worker: Worker,
    post: Post,
    does: Callable[[Step], None],
    monkeypatch: pytest.MonkeyPatch,
    statuses: tuple[int, int],
    *,
    compiling: tuple[bool, bool],
    marked: bool,
) -> None:
    ends = iter(zip(statuses, compiling, strict=True))
    crashes: list[Crash] = []

    def step(_worker: Worker, watch: Watch) -> None:
        status, watch.compiling = next(ends)
        watch.news.hear(LogLine("verbose", "--------------- Timing Runner: /conv (CaskConvolution[0x80000009])"))
        raise EngineHostDied("The engine host ended.", status=status)

    def crashed(_session: Session, _held: Claim, _work: RunWork, _worker: Worker, crash: Crash) -> None:
        crashes.append(crash)

    does(step)
    monkeypatch.setitem(kinds.KINDS, "run", replace(kinds.KINDS["run"], crashed=crashed))
    job_id = post()
    run_job(worker, job_id)
    run_job(worker, job_id)
    error = read(worker.database, job_id).error
    assert error is not None
    assert error["code"] == "engine_host_died_twice"
    assert crashes == ([Crash("The engine host ended.", "/conv")] if marked else [])


def test_after_a_death_the_next_attempt_has_an_engine_host_to_itself(
    worker: Worker, post: Post, does: Callable[[Step], None]
) -> None:
    hosts: list[int | None] = []

    def step(worker: Worker, _watch: Watch) -> None:
        hosts.append(worker.host.pid)
        raise EngineHostDied("The engine host was killed by SIGSEGV.", status=SEGV)

    worker.host.greet()
    does(step)
    job_id = post()
    run_job(worker, job_id)
    worker.host.greet()  # for another job, which may have left engines there
    run_job(worker, job_id)
    assert hosts[0] is not None
    assert hosts[1] is None


@pytest.mark.parametrize(
    "error",
    [EngineHostOutOfMemory("The engine host ran out of memory."), BackendError("out_of_memory", "No memory.")],
    ids=repr,
)
def test_a_job_that_runs_out_of_memory_twice_has_failed(
    worker: Worker, post: Post, does: Callable[[Step], None], error: Exception
) -> None:
    does(raising(error))
    job_id = post()
    run_job(worker, job_id)
    run_job(worker, job_id)
    job = read(worker.database, job_id)
    assert job.error is not None
    assert (job.state, job.attempt, job.error["code"]) == (State.FAILED, 2, "out_of_memory")


def test_the_end_of_a_job_is_written_once_the_database_is_back(
    worker: Worker, post: Post, does: Callable[[Step], None], away: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = worker.database
    back_after = [0.0, 0.0, 1.0]

    def wait(pause: float) -> None:
        if back_after.pop() == 0.0:
            worker.database = database
        assert pause > 0

    def step(worker: Worker, _watch: Watch) -> None:
        worker.database = away
        raise BackendError("unsupported_operator", "no kernel for Foo")

    monkeypatch.setattr(worker.stopping, "wait", wait)
    does(step)
    job_id = post()
    run_job(worker, job_id)
    assert read(database, job_id).state == State.FAILED


def test_a_database_that_fails_for_a_moment_loses_no_result(
    worker: Worker, post: Post, does: Callable[[Step], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    does(lambda _worker, _watch: None)
    faults = [OperationalError("UPDATE jobs", {}, ConnectionError("server closed the connection"))]
    succeed = lease.succeed

    def flaky(*args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - stands in for any call
        if faults:
            raise faults.pop()
        succeed(*args, **kwargs)

    monkeypatch.setattr(lease, "succeed", flaky)
    job_id = post()
    run_job(worker, job_id)
    assert faults == []
    assert read(worker.database, job_id).state == State.SUCCEEDED


def test_what_was_put_and_cannot_be_published_is_collected(
    worker: Worker,
    post: Post,
    does: Callable[[Step], None],
    store: ArtifactStore,
    pauses: list[float],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*_args: Any, **_kwargs: Any) -> None:  # noqa: ANN401 - stands in for any call
        raise OperationalError("INSERT", {}, ConnectionError("database or disk is full"))

    does(lambda _worker, _watch: None)
    monkeypatch.setattr(lease, "succeed", full)
    job_id = post()
    run_job(worker, job_id)
    assert sum(pauses) == pytest.approx(worker.settings.outage_limit_s, abs=5.0)
    assert read(worker.database, job_id).state == State.QUEUED
    assert store.size(DIGEST) == len(CONTENT)
    collect_orphans(worker.database, store, older_than_s=-2 * worker.settings.job_deadline_s)
    assert store.size(DIGEST) is None


def test_nothing_is_put_that_cannot_be_recorded(
    worker: Worker, store: ArtifactStore, away: Database, pauses: list[float]
) -> None:
    worker.database = away
    with pytest.raises(DATABASE_DOWN):
        worker.put(made_in(worker.scratch))
    assert sum(pauses) == pytest.approx(PUT_OUTAGE_S, abs=5.0)
    assert store.size(DIGEST) is None


def test_a_database_that_fails_for_a_moment_only_puts_off_a_put(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    faults = [OperationalError("INSERT", {}, ConnectionError("server closed the connection"))]
    record = service.record

    def flaky(*args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - stands in for any call
        if faults:
            raise faults.pop()
        record(*args, **kwargs)

    monkeypatch.setattr(service, "record", flaky)
    assert worker.put(made_in(worker.scratch)) == (DIGEST, len(CONTENT))
    assert faults == []
    assert blob_is_recorded(worker.database)


def test_a_store_that_fails_for_a_moment_only_puts_off_a_put_and_the_worker_tells_of_it(
    worker: Worker, pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    faults = [Unavailable("The store is read-only.", code="store_read_only") for _ in range(3)]
    troubles: list[str | None] = []
    put_file = LocalStore.put_file

    def flaky(store: LocalStore, path: Path, *, digest: str | None = None) -> tuple[str, int]:
        troubles.append(worker.report().trouble)
        if faults:
            raise faults.pop()
        return put_file(store, path, digest=digest)

    monkeypatch.setattr(LocalStore, "put_file", flaky)
    assert worker.put(made_in(worker.scratch)) == (DIGEST, len(CONTENT))
    assert len(pauses) == 3
    assert pauses == sorted(pauses)
    assert troubles == [None, *["The store is read-only."] * 3]
    assert worker.report().trouble is None


@pytest.mark.usefixtures("impatient")
def test_a_database_that_is_away_for_a_while_stops_no_work(
    worker: Worker, post: Post, does: Callable[[Step], None]
) -> None:
    def step(worker: Worker, watch: Watch) -> None:
        database, worker.database = worker.database, Database("sqlite:////nowhere/enginesmith.db")
        watch.news.hear(LogLine("info", "said while it was away"))
        watch.tick()
        worker.database = database
        watch.tick()

    does(step)
    job_id = post()
    run_job(worker, job_id)
    assert read(worker.database, job_id).state == State.SUCCEEDED
    assert told(worker.database, job_id) == ["queued", "running", "log", "succeeded"]


def test_a_job_that_cannot_be_claimed_now_stays_for_later(worker: Worker, post: Post) -> None:
    job_id = post()
    database, worker.database = worker.database, Database("sqlite:////nowhere/enginesmith.db")
    assert not do_job(worker, job_id)
    assert not do_ready_job(worker)
    assert read(database, job_id).state == State.QUEUED


def test_nothing_is_left_in_the_scratch_folder(worker: Worker, post: Post, does: Callable[[Step], None]) -> None:
    folders: list[Path] = []

    def step(_worker: Worker, watch: Watch) -> None:
        folders.append(watch.folder)
        (watch.folder / "plan").write_bytes(b"plan")

    does(step)
    run_job(worker, post())
    assert not folders[0].exists()


def _ask_cancel(database: Database, job_id: str) -> None:
    with database.transaction() as session:
        lease.request_cancel(session, job_id)


def _end_pause(worker: Worker, job_id: str) -> None:
    with worker.database.transaction() as session:
        session.get_one(Job, job_id).again_at = now()


def _take_over(worker: Worker, job_id: str) -> None:
    """Let the lease pass to another worker, as after it ran out."""
    with worker.database.transaction() as session:
        job = session.get_one(Job, job_id)
        job.state = State.QUEUED
    taken = lease.claim(worker.database, job_id, worker="another", settings=worker.settings)
    assert taken is not None

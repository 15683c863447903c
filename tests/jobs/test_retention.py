from collections.abc import Callable
from datetime import timedelta

import pytest
import sqlalchemy as sa
from fastapi.testclient import TestClient
from sqlalchemy import select, update

from app.artifacts import service as artifacts
from app.artifacts.tables import Blob, BlobUse
from app.database import Database, now
from app.jobs import idempotency, retention
from app.jobs.retention import Removed, blobs_owner
from app.jobs.state import State
from app.jobs.tables import IdempotencyKey, Job, JobEvent, Pruned
from tests.jobs.conftest import MakeJob

NOBODY = sa.false()
DIGEST = "sha256:" + "ab" * 32
MakeEnded = Callable[..., str]


@pytest.fixture
def ended(database: Database, make_job: MakeJob) -> MakeEnded:
    """Insert a job that ended some days ago, with a key and a blob of its own; return its id."""

    def make(days: float, *, state: State = State.SUCCEEDED) -> str:
        job_id = make_job()
        moment = now() - timedelta(days=days)
        digest = f"sha256:{job_id.replace('-', ''):0<64}"
        with database.transaction() as session:
            session.execute(update(Job).where(Job.id == job_id).values(state=state, finished_at=moment))
            idempotency.remember(session, f"key of {job_id}", "digest", job_id)
            session.execute(update(IdempotencyKey).where(IdempotencyKey.job_id == job_id).values(created_at=moment))
            artifacts.record(session, digest, 7)
            artifacts.keep(session, digest, blobs_owner(job_id))
        return job_id

    return make


def everything(database: Database) -> dict[str, set[str]]:
    with database.reading() as session:
        return {
            "jobs": set(session.scalars(select(Job.id))),
            "events": set(session.scalars(select(JobEvent.job_id))),
            "keys": set(session.scalars(select(IdempotencyKey.job_id))),
            "uses": {owner.removeprefix("job:") for owner in session.scalars(select(BlobUse.owner))},
        }


def test_a_job_goes_with_its_events_its_key_and_its_blobs(database: Database, ended: MakeEnded) -> None:
    old, young = ended(91), ended(89)
    assert retention.remove_jobs(database, days=90, named=NOBODY) == Removed(jobs=1, events=1)
    assert everything(database) == {"jobs": {young}, "events": {young}, "keys": {young}, "uses": {young}}
    with database.reading() as session:
        assert session.scalar(select(sa.func.count()).select_from(Blob)) == 2  # collected after another grace
    assert old not in everything(database)["jobs"]


@pytest.mark.parametrize("state", [State.SUCCEEDED, State.FAILED, State.CANCELED])
def test_it_does_not_matter_how_a_job_ended(database: Database, ended: MakeEnded, state: State) -> None:
    ended(2, state=state)
    assert retention.remove_jobs(database, days=1, named=NOBODY).jobs == 1


def test_a_job_that_has_not_ended_stays_however_old(database: Database, make_job: MakeJob) -> None:
    job_id = make_job()
    with database.transaction() as session:
        session.execute(update(Job).values(created_at=now() - timedelta(days=900)))
    assert retention.remove_jobs(database, days=1, named=NOBODY) == Removed()
    assert everything(database)["jobs"] == {job_id}


def test_a_job_that_something_names_stays_without_its_events(database: Database, ended: MakeEnded) -> None:
    named, other = ended(91), ended(92)
    assert retention.remove_jobs(database, days=90, named=Job.id == named) == Removed(jobs=1, events=2)
    assert everything(database) == {"jobs": {named}, "events": set(), "keys": set(), "uses": {named}}
    assert other not in everything(database)["jobs"]


def test_what_was_taken_is_not_looked_at_again(database: Database, ended: MakeEnded) -> None:
    named = ended(91)
    for _ in range(2):
        retention.remove_jobs(database, days=90, named=Job.id == named)
        with database.reading() as session:
            assert session.scalar(select(Job.pruned)) == Pruned.EVENTS
            assert not session.scalars(select(Job.id).where(*retention.due_events(90))).all()


def test_blobs_are_released_before_their_job_goes_and_the_job_tells(database: Database, ended: MakeEnded) -> None:
    old, young = ended(31), ended(29)
    assert retention.release_blobs(database, days=30, named=NOBODY) == 1
    assert retention.release_blobs(database, days=30, named=NOBODY) == 0
    assert everything(database)["uses"] == {young}
    with database.reading() as session:
        last = session.execute(
            select(JobEvent.seq, JobEvent.type, JobEvent.data)
            .where(JobEvent.job_id == old)
            .order_by(JobEvent.seq.desc())
        ).first()
        assert last == (2, "blobs_released", {"after_days": 30})


def test_a_named_job_keeps_its_blobs(database: Database, ended: MakeEnded) -> None:
    named = ended(31)
    assert retention.release_blobs(database, days=30, named=Job.id == named) == 0
    assert everything(database)["uses"] == {named}


def test_a_blob_that_another_job_keeps_stays_kept(database: Database, ended: MakeEnded) -> None:
    old, young = ended(31), ended(1)
    with database.transaction() as session:
        artifacts.record(session, DIGEST, 1)
        for job_id in (old, young):
            artifacts.keep(session, DIGEST, blobs_owner(job_id))
    retention.release_blobs(database, days=30, named=NOBODY)
    with database.reading() as session:
        kept = session.scalars(select(BlobUse.owner).where(BlobUse.digest == DIGEST)).all()
    assert kept == [blobs_owner(young)]


def test_a_key_goes_some_time_after_its_job_ended(database: Database, ended: MakeEnded, make_job: MakeJob) -> None:
    old, young = ended(8), ended(6)
    running = make_job()
    with database.transaction() as session:
        idempotency.remember(session, "key of a long job", "digest", running)
        session.execute(
            update(IdempotencyKey).where(IdempotencyKey.job_id == running).values(created_at=now() - timedelta(days=20))
        )
    assert retention.remove_keys(database, days=7) == 1
    assert everything(database)["keys"] == {young, running}
    assert old in everything(database)["jobs"]


@pytest.mark.parametrize("act", [
    lambda database, go_on: retention.remove_jobs(database, days=1, named=NOBODY, go_on=go_on).jobs,
    lambda database, go_on: retention.release_blobs(database, days=1, named=NOBODY, go_on=go_on),
    lambda database, go_on: retention.remove_keys(database, days=1, go_on=go_on),
])  # fmt: skip
def test_it_goes_on_in_batches_until_it_is_told_to_end(
    database: Database, ended: MakeEnded, monkeypatch: pytest.MonkeyPatch, act: Callable[..., int]
) -> None:
    monkeypatch.setattr(retention, "BATCH", 2)
    for _ in range(5):
        ended(2)
    assert act(database, lambda: False) == 2
    assert act(database, lambda: True) == 3


def test_a_removed_job_is_answered_with_how_long_jobs_are_kept(
    client: TestClient, database: Database, ended: MakeEnded
) -> None:
    job_id = ended(91)
    retention.remove_jobs(database, days=90, named=NOBODY)
    for path in (f"/v1/jobs/{job_id}", f"/v1/jobs/{job_id}/events"):
        answer = client.get(path)
        assert (answer.status_code, answer.json()["code"]) == (404, "job_not_found")
        assert "ENGINESMITH_KEEP_JOBS_DAYS" in answer.json()["detail"]
    assert "KEEP_JOBS" not in client.get("/v1/jobs/no-such-job").json()["detail"]


@pytest.mark.parametrize("accept", ["application/json", "text/event-stream"])
def test_events_that_were_removed_are_answered_as_such(
    client: TestClient, database: Database, ended: MakeEnded, accept: str
) -> None:
    job_id = ended(91)
    retention.remove_jobs(database, days=90, named=Job.id == job_id)
    assert client.get(f"/v1/jobs/{job_id}").json()["state"] == "succeeded"
    answer = client.get(f"/v1/jobs/{job_id}/events", headers={"Accept": accept})
    assert (answer.status_code, answer.json()["code"]) == (404, "events_removed")


def test_a_key_that_went_makes_a_new_job(database: Database, ended: MakeEnded) -> None:
    job_id = ended(8)
    retention.remove_keys(database, days=7)
    with database.reading() as session:
        assert idempotency.earlier_job(session, f"key of {job_id}", "another digest") is None

"""What goes of jobs that ended long ago: first the blobs that only they keep, then their events, then they themselves.

A job that ended changes no more, so its rows are removed without a guard. Any number of processes may remove at once:
on PostgreSQL each passes over the jobs that another one has locked.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TypeVar

from sqlalchemy import ColumnElement, Row, delete, insert, select, update
from sqlalchemy.orm import Session

from app.artifacts.service import release
from app.artifacts.tables import BlobUse
from app.database import Database, now
from app.jobs.events import Event
from app.jobs.tables import IdempotencyKey, Job, JobDependency, JobEvent, Pruned
from app.pace import GoOn, unhindered

BATCH = 100  # jobs of one transaction
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Removed:
    """How many rows were removed."""

    jobs: int = 0
    events: int = 0

    def __add__(self, other: "Removed") -> "Removed":
        return Removed(self.jobs + other.jobs, self.events + other.events)


def blobs_owner(job_id: str) -> str:
    """Return the owner by whose name a job keeps its inputs and outputs."""
    return f"job:{job_id}"


def ended_before(days: float) -> datetime:
    """Return the time before which something is older than `days`."""
    return now() - timedelta(days=days)


def due_blobs(days: float) -> tuple[ColumnElement[bool], ...]:
    """Return the conditions on a job whose blobs are due: it ended `days` ago."""
    return (Job.pruned == Pruned.NOTHING, Job.finished_at < ended_before(days))


def due_events(days: float) -> tuple[ColumnElement[bool], ...]:
    """Return the conditions on a job whose events, and it itself if nothing names it, are due: it ended `days` ago."""
    return (Job.pruned.in_((Pruned.NOTHING, Pruned.BLOBS)), Job.finished_at < ended_before(days))


def due_keys(days: float) -> tuple[ColumnElement[bool], ...]:
    """Return the conditions on an idempotency key that is due: the job that it made ended `days` ago."""
    ended = select(Job.id).where(Job.id == IdempotencyKey.job_id, Job.finished_at < ended_before(days)).exists()
    return (IdempotencyKey.created_at < ended_before(days), ended)


def release_blobs(database: Database, *, days: float, named: ColumnElement[bool], go_on: GoOn = unhindered) -> int:
    """Release the blobs of jobs that ended `days` ago, and return of how many jobs.

    `named` is the condition on a job that something else names for good: such a job keeps its blobs. Each other job
    that had some tells in an event that they went.
    """

    def take(session: Session, jobs: Sequence[Row[str, bool]]) -> int:
        owners = {blobs_owner(job.id): job.id for job in jobs if not job.named}
        keeping = set(session.scalars(select(BlobUse.owner).where(BlobUse.owner.in_(owners))))
        release(session, *keeping)
        _mark(session, [job.id for job in jobs], Pruned.BLOBS)
        _tell(session, [owners[owner] for owner in keeping], Event("blobs_released", {"after_days": days}))
        return len(keeping)

    return sum(_batches(database, due_blobs(days), named, take, go_on))


def remove_jobs(database: Database, *, days: float, named: ColumnElement[bool], go_on: GoOn = unhindered) -> Removed:
    """Remove jobs that ended `days` ago with their events, keys and blobs; of a `named` one only events and keys."""

    def take(session: Session, jobs: Sequence[Row[str, bool]]) -> Removed:
        ids = [job.id for job in jobs]
        going = [job.id for job in jobs if not job.named]
        gone = session.execute(delete(JobEvent).where(JobEvent.job_id.in_(ids)).returning(JobEvent.seq)).all()
        session.execute(delete(IdempotencyKey).where(IdempotencyKey.job_id.in_(ids)))
        release(session, *map(blobs_owner, going))
        for of_job in (JobDependency.job_id, JobDependency.awaited_id):
            session.execute(delete(JobDependency).where(of_job.in_(going)))
        session.execute(delete(Job).where(Job.id.in_(going)))
        _mark(session, [job.id for job in jobs if job.named], Pruned.EVENTS)
        return Removed(len(going), len(gone))

    return sum(_batches(database, due_events(days), named, take, go_on), Removed())


def remove_keys(database: Database, *, days: float, go_on: GoOn = unhindered) -> int:
    """Remove the idempotency keys of jobs that ended `days` ago, and return how many."""
    removed = 0
    while True:
        with database.reading() as session:
            keys = session.scalars(select(IdempotencyKey.key).where(*due_keys(days)).limit(BATCH)).all()
        if not keys:
            return removed
        statement = delete(IdempotencyKey).where(IdempotencyKey.key.in_(keys)).returning(IdempotencyKey.key)
        with database.transaction(durable=False) as session:
            removed += len(session.scalars(statement).all())
        if not go_on():
            return removed


def _batches(
    database: Database,
    due: tuple[ColumnElement[bool], ...],
    named: ColumnElement[bool],
    take: Callable[[Session, Sequence[Row[str, bool]]], T],
    go_on: GoOn,
) -> Iterator[T]:
    """Yield what `take` returns of each batch of jobs that are due.

    A power cut may bring back what was taken last; then it is due again.
    """
    while True:
        with database.transaction(durable=False) as session:
            jobs = session.execute(
                select(Job.id, named.label("named")).where(*due).limit(BATCH).with_for_update(of=Job, skip_locked=True)
            ).all()
            taken = take(session, jobs) if jobs else None
        if taken is None:
            return
        yield taken
        if not go_on():
            return


def _mark(session: Session, ids: Sequence[str], pruned: Pruned) -> None:
    statement = update(Job).where(Job.id.in_(ids)).values(pruned=pruned)
    session.execute(statement.execution_options(synchronize_session=False))


def _tell(session: Session, ids: Sequence[str], event: Event) -> None:
    """Write the same event of many jobs."""
    if not ids:
        return
    counted = update(Job).where(Job.id.in_(ids)).values(last_event=Job.last_event + 1).returning(Job.id, Job.last_event)
    numbered = session.execute(counted.execution_options(synchronize_session=False)).all()
    at = now()
    rows = [
        {"job_id": job_id, "seq": seq, "type": event.type, "data": event.data, "at": at} for job_id, seq in numbered
    ]
    session.execute(insert(JobEvent), rows)

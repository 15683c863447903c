"""Jobs that were left behind: their leases ran out.

Any number of workers may sweep at once: each statement is guarded, so only one worker moves a job.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import structlog
from sqlalchemy import Row, select, update

from app.database import Database, now
from app.jobs.events import Event
from app.jobs.lease import JobError
from app.jobs.sharing import conclude
from app.jobs.state import HELD, State
from app.jobs.tables import Job
from app.jobs.transition import Notify, ended, requeued, write
from app.settings import Settings

BATCH = 200  # jobs that one sweep moves at most, so that no sweep holds the database for long
log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Swept:
    """How many jobs one sweep moved."""

    requeued: int = 0
    failed: int = 0
    canceled: int = 0


def sweep(database: Database, settings: Settings, *, notify: Notify | None = None) -> Swept:
    """Take back the jobs whose lease ran out."""
    moved = Counter(_take_back(database, row, settings, notify) for row in _expired(database))
    return Swept(moved[State.QUEUED], moved[State.FAILED], moved[State.CANCELED])


def let_go(database: Database, is_gone: Callable[[str], bool]) -> int:
    """End the leases of workers that are gone, and return how many; the next sweep takes their jobs back."""
    held = (Job.state.in_(HELD), Job.worker.is_not(None), Job.lease_until >= now())
    with database.reading() as session:
        rows = session.execute(select(Job.id, Job.fence, Job.worker).where(*held)).all()
    ended = [row for row in rows if is_gone(row.worker)]
    for row in ended:
        statement = update(Job).where(Job.id == row.id, Job.fence == row.fence, *held).values(lease_until=now())
        with database.transaction() as session:
            session.execute(statement)
    return len(ended)


def _expired(database: Database) -> Sequence[Row[str, str, int, int, str | None]]:
    statement = (
        select(Job.id, Job.state, Job.fence, Job.attempt, Job.worker)
        .where(Job.state.in_(HELD), Job.lease_until < now())
        .order_by(Job.lease_until)
        .limit(BATCH)
    )
    with database.reading() as session:
        return session.execute(statement).all()


def _take_back(
    database: Database, row: Row[str, str, int, int, str | None], settings: Settings, notify: Notify | None
) -> State | None:
    """Move one job whose lease ran out; None if its worker has renewed the lease, or another sweep was first."""
    told = [Event("lease_expired", {"worker": row.worker, "attempt": row.attempt})]
    if row.state == State.CANCELING:
        values = ended(State.CANCELED)
        told.append(Event("canceled"))
    elif row.attempt >= settings.max_attempts:
        error = _worker_lost(row.worker, row.attempt).to_json()
        values = ended(State.FAILED) | {"error": error}
        told.append(Event("failed", {"error": error}))
    else:
        values = requeued()
    with database.transaction() as session:
        states = (State(row.state),)
        moved = write(session, row.id, states, fence=row.fence, expired_before=now(), values=values, told=told)
        if moved is not None:
            conclude(session, notify, row.id, moved)
            log.warning("lease expired", job_id=row.id, worker=row.worker, attempt=row.attempt, state=moved)
    return moved


def _worker_lost(worker: str | None, attempt: int) -> JobError:
    return JobError(
        "worker_lost",
        f"The worker was lost in each of {attempt} attempts, the last time {worker!r}. "
        "Look in that worker's log for what ended it (often memory), then post the job again.",
    )

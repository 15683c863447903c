"""Jobs that were left behind: their leases ran out, or the broker lost their messages.

Any number of workers may sweep at once: each statement is guarded, so only one worker moves a job.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Protocol

import redis
import structlog
from sqlalchemy import ColumnElement, Row, func, select, update

from app.database import Database, now
from app.jobs.events import Event
from app.jobs.lease import JobError
from app.jobs.queue import redis_url
from app.jobs.state import HELD, State
from app.jobs.tables import Job
from app.jobs.transition import Notify, ended, requeued, tell, write
from app.settings import Settings

BATCH = 200  # jobs that one sweep moves at most, so that no sweep holds the database for long
SOCKET_TIMEOUT_S = 3.0
log = structlog.get_logger(__name__)


class Sender(Protocol):
    """The sending end of the broker."""

    def send(self, job_id: str, queue: str) -> object:
        """Tell the workers of a queue about a job."""


@dataclass(frozen=True, slots=True)
class Swept:
    """How many jobs one sweep moved."""

    requeued: int = 0
    failed: int = 0
    canceled: int = 0
    sent: int = 0


class Backlog:
    """Counts the messages of a queue that wait in the broker."""

    def __init__(self, broker_url: str) -> None:
        self._client = redis.Redis.from_url(
            redis_url(broker_url), socket_timeout=SOCKET_TIMEOUT_S, socket_connect_timeout=SOCKET_TIMEOUT_S
        )

    def __call__(self, queue: str) -> int:
        """Return the number of waiting messages; raises redis.RedisError."""
        return int(self._client.llen(queue))


def sweep(
    database: Database,
    queue: Sender,
    settings: Settings,
    *,
    queues: Sequence[str],
    backlog: Callable[[str], int],
    resend_after_s: float,
    notify: Notify | None = None,
) -> Swept:
    """Take back the jobs whose lease ran out, and send the jobs of `queues` that no worker has heard of.

    A job is sent if it was never sent. It is sent again if its message is lost. A message counts as lost if it was
    sent more than `resend_after_s` seconds ago and its queue is empty in the broker, or if a message that was sent
    that much later was taken. So a long queue is not sent again and again. Raises redis.RedisError if the broker is
    down.
    """
    moved = Counter(_take_back(database, row, settings, notify) for row in _expired(database))
    sent = sum(_send_unsent(database, queue, name, backlog, resend_after_s) for name in queues)
    return Swept(moved[State.QUEUED], moved[State.FAILED], moved[State.CANCELED], sent)


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
            tell(session, notify, row.id, moved)
            log.warning("lease expired", job_id=row.id, worker=row.worker, attempt=row.attempt, state=moved)
    return moved


def _worker_lost(worker: str | None, attempt: int) -> JobError:
    return JobError(
        "worker_lost",
        f"The worker was lost in each of {attempt} attempts, the last time {worker!r}. "
        "Look in that worker's log for what ended it (often memory), then post the job again.",
    )


def _send_unsent(
    database: Database, queue: Sender, name: str, backlog: Callable[[str], int], resend_after_s: float
) -> int:
    waiting = backlog(name)  # first: if the broker is down, this raises before anything is marked as sent
    unsent = _mark_sent(database, name, Job.sent_at.is_(None))
    overdue = now() - timedelta(seconds=resend_after_s)
    if waiting:
        overdue = min(overdue, _last_taken(database, name) - timedelta(seconds=resend_after_s))
    lost = _mark_sent(database, name, Job.sent_at < overdue)
    for job_id in [*unsent, *lost]:
        queue.send(job_id, name)
    return len(unsent) + len(lost)


def _last_taken(database: Database, name: str) -> datetime:
    """Return when the newest message that a worker has taken was sent; a waiting one that is much older is lost.

    Messages keep their order, so this finds a lost message in a queue that is never empty.
    """
    newest = [
        select(func.max(Job.sent_at)).where(Job.state == state, Job.queue == name)  # each is one step in the index
        for state in (State.RUNNING, State.SUCCEEDED, State.FAILED)
    ]
    with database.reading() as session:
        times = [moment for statement in newest if (moment := session.scalar(statement)) is not None]
    return max(times, default=datetime.fromtimestamp(0, UTC))


def _mark_sent(database: Database, name: str, due: ColumnElement[bool]) -> Sequence[str]:
    """Set `sent_at` of the queued jobs that are due to now, and return their ids; only one of several sweeps gets each.

    It reads before it writes: nearly always nothing is due, and SQLite has one writer at a time.
    """
    conditions = (Job.state == State.QUEUED, Job.queue == name, due)
    with database.reading() as session:
        ids = session.scalars(select(Job.id).where(*conditions).order_by(Job.sent_at).limit(BATCH)).all()
    if not ids:
        return []
    free = select(Job.id).where(Job.id.in_(ids), *conditions).with_for_update(skip_locked=True)
    statement = (
        update(Job)
        .where(Job.id.in_(free), *conditions)
        .values(sent_at=now())
        .returning(Job.id)
        .execution_options(synchronize_session=False)
    )
    with database.transaction() as session:
        return sorted(session.scalars(statement))

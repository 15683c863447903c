"""Who works on a job.

A worker claims a job under a new fence number and holds it while it renews the lease. Every write is a
guarded UPDATE on fence and state, so of several workers one wins, and a worker whose lease was taken
over can change nothing any more: it gets LeaseLost. Times are the machines' clocks, which must agree to
well within `lease_s`.

`notify` is told a job's id and state after each commit, so that whoever waits for the job looks at once. It is
a hint: its failure is logged and never fails the call.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from typing import Any

from sqlalchemy import bindparam, func, select, update
from sqlalchemy.orm import Session

from app.database import Database, now
from app.jobs import events as job_events
from app.jobs.events import Event
from app.jobs.state import HELD, State, before
from app.jobs.tables import Job
from app.jobs.transition import Notify, ended, requeued, tell, write
from app.settings import Settings

CLAIM = (
    update(Job)
    .where(Job.id == bindparam("job"), Job.state.in_(before(State.RUNNING)))
    .values(
        state=State.RUNNING,
        fence=Job.fence + 1,
        attempt=Job.attempt + 1,
        worker=bindparam("by"),
        lease_until=bindparam("until"),
        started_at=func.coalesce(Job.started_at, bindparam("moment", type_=Job.started_at.type)),
        last_event=Job.last_event + 1,
    )
    .returning(Job.kind, Job.model_id, Job.fence, Job.attempt, Job.request, Job.queue, Job.last_event)
)


class LeaseLost(Exception):
    """The job belongs to another worker by now, or has ended: throw the result away."""


class CancelAsked(Exception):
    """The job's cancel came before its result: roll back, then `cancel` it."""


@dataclass(frozen=True, slots=True)
class Claim:
    """The right to work on a job while its lease is renewed; `fence` guards every later write."""

    job_id: str
    kind: str
    model_id: int
    fence: int
    attempt: int
    request: dict[str, Any]
    queue: str
    worker: str
    lease_s: float


@dataclass(frozen=True, slots=True)
class JobProgress:
    """How far a job is: its phase, and steps done of a total where the phase has steps."""

    phase: str
    step: int | None = None
    total: int | None = None


@dataclass(frozen=True, slots=True)
class JobError:
    """Why a job failed: a stable code, a text that names the remedy, the log's last lines, and figures."""

    code: str
    detail: str
    log: list[str] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the job's `error`: code and detail always, log and figures where there are any."""
        return {name: value for name, value in asdict(self).items() if value or name in {"code", "detail"}}


def claim(
    database: Database, job_id: str, *, worker: str, settings: Settings, notify: Notify | None = None
) -> Claim | None:
    """Take a queued job; None where there is none: the message was doubled, or the job canceled meanwhile.

    A claim need not survive the machine, on which the worker that made it goes as well.
    """
    moment = now()
    until = moment + timedelta(seconds=settings.lease_s)
    given = {"job": job_id, "by": worker, "until": until, "moment": moment}
    with database.transaction(durable=False) as session:
        row = session.connection().execute(CLAIM, given).one_or_none()
        if row is None:
            return None
        kind, model_id, fence, attempt, request, queue, last = row
        started = Event("running", {"worker": worker, "attempt": attempt})
        job_events.write(session, job_id, last, [started])
        tell(session, notify, job_id, State.RUNNING)
    return Claim(job_id, kind, model_id, fence, attempt, request, queue, worker, settings.lease_s)


def renew(
    database: Database,
    held: Claim,
    *,
    progress: JobProgress | None = None,
    events: Sequence[Event] = (),
    notify: Notify | None = None,
) -> State:
    """Extend the lease and write what happened since; CANCELING where the job is to stop, RUNNING else.

    Without events there is nothing in it that has to survive the machine. Raises LeaseLost, with nothing written.
    """
    values: dict[str, Any] = {"lease_until": now() + timedelta(seconds=held.lease_s)}
    if progress is not None:
        values |= asdict(progress)
    with database.transaction(durable=bool(events)) as session:
        state = _write(session, held, HELD, values, events)
        if state is None:
            raise LeaseLost(held.job_id)
        if progress is not None or events:
            tell(session, notify, held.job_id, state)
    return state


def state_of(database: Database, held: Claim) -> State:
    """Read whether the job is to go on (RUNNING) or to stop (CANCELING); raises LeaseLost."""
    with database.reading() as session:
        state = _read(session, held)
    if state not in HELD:
        raise LeaseLost(held.job_id)
    return state


def succeed(
    session: Session,
    held: Claim,
    result: dict[str, Any],
    *,
    was_ready: bool = False,
    events: Sequence[Event] = (),
    notify: Notify | None = None,
) -> None:
    """Finish the job in the caller's transaction, the same that publishes what it made.

    `events` are those not yet written; "succeeded" follows them. A job whose result `was_ready` says nothing of how
    long like ones take. After LeaseLost or CancelAsked the caller's transaction must be rolled back.
    """
    told = [*events, Event("succeeded", {"result": result})]
    values = ended(State.SUCCEEDED) | {"result": result}
    if was_ready:
        values |= {"likeness": None}
    if _write(session, held, before(State.SUCCEEDED), values, told) is None:
        raise CancelAsked(held.job_id) if _read(session, held) == State.CANCELING else LeaseLost(held.job_id)
    tell(session, notify, held.job_id, State.SUCCEEDED)


def fail(
    database: Database,
    held: Claim,
    error: JobError,
    *,
    events: Sequence[Event] = (),
    notify: Notify | None = None,
) -> None:
    """End the job as failed, or as canceled if that was asked; raises LeaseLost."""
    told = [*events, Event("failed", {"error": error.to_json()})]
    _leave(database, held, ended(State.FAILED) | {"error": error.to_json()}, told, notify)


def cancel(database: Database, held: Claim, *, events: Sequence[Event] = (), notify: Notify | None = None) -> None:
    """End a job whose cancel was asked; raises LeaseLost."""
    with database.transaction() as session:
        if _cancel(session, held, events) is None:
            raise LeaseLost(held.job_id)
        tell(session, notify, held.job_id, State.CANCELED)


def release(
    database: Database,
    held: Claim,
    reason: str,
    *,
    events: Sequence[Event] = (),
    notify: Notify | None = None,
) -> None:
    """Give the job back without counting the attempt; a sweep sends it again. Raises LeaseLost."""
    told = [*events, Event("released", {"reason": reason, "attempt": held.attempt})]
    _leave(database, held, requeued() | {"attempt": held.attempt - 1}, told, notify)


def retry(
    database: Database,
    held: Claim,
    error: JobError,
    *,
    events: Sequence[Event] = (),
    notify: Notify | None = None,
) -> None:
    """Give the job back after a fault that may pass, the attempt counted; a sweep sends it again.

    The caller keeps to `max_attempts`: the last attempt ends in `fail`. Raises LeaseLost.
    """
    told = [*events, Event("retried", {"error": error.to_json(), "attempt": held.attempt})]
    _leave(database, held, requeued(), told, notify)


def request_cancel(session: Session, job_id: str, *, notify: Notify | None = None) -> None:
    """Cancel a queued job at once, ask the worker of a running one to stop, leave any other as it is."""
    asked = write(session, job_id, (State.QUEUED,), values=ended(State.CANCELED), told=[Event("canceled")]) or write(
        session,
        job_id,
        before(State.CANCELING),
        values={"state": State.CANCELING},
        told=[Event("canceling")],
    )
    if asked:
        tell(session, notify, job_id, asked)


def _leave(
    database: Database, held: Claim, values: dict[str, Any], told: Sequence[Event], notify: Notify | None
) -> None:
    """Move a running job as its worker wants; one whose cancel was asked ends canceled instead."""
    with database.transaction() as session:
        left = _write(session, held, before(values["state"]), values, told) or _cancel(session, held, told[:-1])
        if left is None:
            raise LeaseLost(held.job_id)
        tell(session, notify, held.job_id, left)


def _cancel(session: Session, held: Claim, told: Sequence[Event]) -> State | None:
    return _write(session, held, (State.CANCELING,), ended(State.CANCELED), [*told, Event("canceled")])


def _write(
    session: Session,
    held: Claim,
    states: Sequence[State] | frozenset[State],
    values: dict[str, Any],
    told: Sequence[Event],
) -> State | None:
    return write(session, held.job_id, states, fence=held.fence, values=values, told=told)


def _read(session: Session, held: Claim) -> State | None:
    statement = select(Job.state).where(Job.id == held.job_id, Job.fence == held.fence)
    state = session.execute(statement).scalar_one_or_none()
    return None if state is None else State(state)

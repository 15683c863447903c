"""Which worker works on a job.

A worker claims a job under a new fence number. It holds the job as long as it renews the lease. Every write is an
UPDATE that is guarded by fence and state, so only one of several workers wins. A worker whose lease was taken over
can change nothing any more: it gets LeaseLost. Times come from the machines' clocks, which must agree to well within
`lease_s`.

After each commit `notify` is called with the job's id and state, so that those who wait for the job look at once. The
call is a hint: if it fails, the failure is logged and nothing else happens.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import timedelta
from typing import Any

from sqlalchemy import bindparam, func, select, update
from sqlalchemy.orm import Session

from app.database import Database, now
from app.jobs import events as job_events
from app.jobs.events import Event
from app.jobs.outage import Outage, again_at
from app.jobs.ready import due
from app.jobs.sharing import conclude
from app.jobs.state import HELD, State, before
from app.jobs.tables import Job
from app.jobs.transition import Notify, ended, requeued, tell, write
from app.redaction import public_json
from app.settings import Settings

CLAIM = (
    update(Job)
    .where(
        Job.id == bindparam("job"),
        Job.state.in_(before(State.RUNNING)),
        due(bindparam("moment", type_=Job.again_at.type)),
    )
    .values(
        state=State.RUNNING,
        fence=Job.fence + 1,
        attempt=Job.attempt + 1,
        worker=bindparam("by"),
        lease_until=bindparam("until"),
        started_at=func.coalesce(Job.started_at, bindparam("moment", type_=Job.started_at.type)),
        last_event=Job.last_event + 1,
    )
    .returning(
        Job.kind,
        Job.model_id,
        Job.fence,
        Job.attempt,
        Job.request,
        Job.queue,
        Job.outage,
        Job.strikes,
        Job.crashes,
        Job.last_event,
        Job.created_at,
    )
)


class LeaseLost(Exception):
    """The job belongs to another worker by now, or it has ended. The result has to be thrown away."""


class CancelAsked(Exception):
    """A client asked to cancel the job before its result was written. Roll back, then `cancel` the job."""


@dataclass(frozen=True, slots=True)
class Claim:
    """The right to work on a job as long as its lease is renewed; `fence` guards every later write.

    `queued_s` are the seconds since the job was asked for. `outage` is what the row says of earlier outages, and
    `strikes` how often the engine host died of the job. In `crashes` of these deaths it crashed, without being killed.
    """

    job_id: str
    kind: str
    model_id: int
    fence: int
    attempt: int
    request: dict[str, Any]
    queue: str
    worker: str
    lease_s: float
    queued_s: float = 0.0
    outage: dict[str, Any] | None = None
    strikes: int = 0
    crashes: int = 0


@dataclass(frozen=True, slots=True)
class JobProgress:
    """How far a job is: its phase, and the steps done and their total if the phase has steps."""

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
        """Return the job's `error` as a client may see it: code and detail, log and figures unless they are empty."""
        return {name: public_json(value) for name, value in asdict(self).items() if value or name in {"code", "detail"}}


def claim(
    database: Database, job_id: str, *, worker: str, settings: Settings, notify: Notify | None = None
) -> Claim | None:
    """Take a queued job; None if it is not queued any more, as after a message that came twice, or has to wait yet.

    A power cut may lose a claim: the worker that made it is lost too.
    """
    moment = now()
    until = moment + timedelta(seconds=settings.lease_s)
    given = {"job": job_id, "by": worker, "until": until, "moment": moment}
    with database.transaction(durable=False) as session:
        row = session.connection().execute(CLAIM, given).one_or_none()
        if row is None:
            return None
        kind, model_id, fence, attempt, request, queue, outage, strikes, crashes, last, created_at = row
        started = Event("running", {"worker": worker, "attempt": attempt})
        job_events.write(session, job_id, last, [started])
        tell(session, notify, job_id, State.RUNNING)
    return Claim(
        job_id=job_id,
        kind=kind,
        model_id=model_id,
        fence=fence,
        attempt=attempt,
        request=request,
        queue=queue,
        worker=worker,
        lease_s=settings.lease_s,
        queued_s=max((moment - created_at).total_seconds(), 0.0),  # the clocks of two machines
        outage=outage,
        strikes=strikes,
        crashes=crashes,
    )


def renew(
    database: Database,
    held: Claim,
    *,
    progress: JobProgress | None = None,
    events: Sequence[Event] = (),
    notify: Notify | None = None,
) -> State:
    """Extend the lease and write the progress and events since; return CANCELING if the job must stop, else RUNNING.

    A power cut may lose a renewal without events. Raises LeaseLost, with nothing written.
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
    """Read whether the worker must go on (RUNNING) or stop (CANCELING); raises LeaseLost."""
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
    shared: Mapping[str, Any] | None = None,
    events: Sequence[Event] = (),
    notify: Notify | None = None,
) -> None:
    """Finish the job in the caller's transaction, which also publishes the result.

    `events` are the events not yet written; "succeeded" follows them. If the result `was_ready`, the job's duration
    says nothing about like jobs, so the job loses its likeness. `shared` is the result of the jobs that make the same
    and waited for this one; None has one of them do the work. Raises LeaseLost or CancelAsked; the caller's transaction
    must then be rolled back.
    """
    result = public_json(result)
    told = [*events, Event("succeeded", {"result": result})]
    values = ended(State.SUCCEEDED) | {"result": result}
    if was_ready:
        values |= {"likeness": None}
    if _write(session, held, before(State.SUCCEEDED), values, told) is None:
        raise CancelAsked(held.job_id) if _read(session, held) == State.CANCELING else LeaseLost(held.job_id)
    waited = None if shared is None else {"result": public_json(dict(shared))}
    conclude(session, notify, held.job_id, State.SUCCEEDED, waited)


def fail(
    database: Database,
    held: Claim,
    error: JobError,
    *,
    lasting: bool = False,
    also: Callable[[Session], None] | None = None,
    events: Sequence[Event] = (),
    notify: Notify | None = None,
) -> None:
    """End the job as failed, or as canceled if a client asked for that; raises LeaseLost.

    If the reason is `lasting`, the jobs that make the same and waited for this one fail of it as well. `also` is called
    in the transaction that fails the job.
    """
    told = [*events, Event("failed", {"error": error.to_json()})]
    values = ended(State.FAILED) | {"error": error.to_json()}
    shared = {"error": _of_another(error, held.job_id).to_json()} if lasting else None
    _leave(database, held, values, told, notify, shared, also)


def cancel(database: Database, held: Claim, *, events: Sequence[Event] = (), notify: Notify | None = None) -> None:
    """End a job as canceled after a client asked for that; raises LeaseLost."""
    with database.transaction() as session:
        if _cancel(session, held, events) is None:
            raise LeaseLost(held.job_id)
        conclude(session, notify, held.job_id, State.CANCELED)


def release(
    database: Database,
    held: Claim,
    reason: str,
    *,
    events: Sequence[Event] = (),
    notify: Notify | None = None,
) -> None:
    """Give the job back to the queue without counting the attempt. Raises LeaseLost."""
    told = [*events, Event("released", {"reason": reason, "attempt": held.attempt})]
    _leave(database, held, requeued() | {"attempt": held.attempt - 1}, told, notify)


def put_off(
    database: Database,
    held: Claim,
    outage: Outage,
    *,
    events: Sequence[Event] = (),
    notify: Notify | None = None,
) -> None:
    """Give the job back to the queue until the pause of its outage is over; no attempt counts. Raises LeaseLost."""
    moment = again_at(outage)
    told = [*events, Event("put_off", {"outage": outage.to_json(), "again_at": moment.isoformat()})]
    values = {"attempt": held.attempt - 1, "again_at": moment, "outage": outage.to_json()}
    _leave(database, held, requeued() | values, told, notify)


def retry(
    database: Database,
    held: Claim,
    error: JobError,
    *,
    strike: bool = False,
    crash: bool = False,
    events: Sequence[Event] = (),
    notify: Notify | None = None,
) -> None:
    """Give the job back to the queue after a fault that may pass; the attempt counts.

    With `strike` the engine host died of the job, and with `crash` nobody had killed it: both count as well. The caller
    keeps to `max_attempts`: the last attempt ends in `fail`. Raises LeaseLost.
    """
    told = [*events, Event("retried", {"error": error.to_json(), "attempt": held.attempt})]
    counts = {"strikes": held.strikes + strike, "crashes": held.crashes + crash}
    _leave(database, held, requeued() | counts, told, notify)


def request_cancel(session: Session, job_id: str, *, notify: Notify | None = None) -> None:
    """Cancel a queued job at once, or ask the worker of a running one to stop; any other job stays as it is."""
    asked = write(session, job_id, (State.QUEUED,), values=ended(State.CANCELED), told=[Event("canceled")]) or write(
        session,
        job_id,
        before(State.CANCELING),
        values={"state": State.CANCELING},
        told=[Event("canceling")],
    )
    if asked:
        conclude(session, notify, job_id, asked)


def _leave(
    database: Database,
    held: Claim,
    values: dict[str, Any],
    told: Sequence[Event],
    notify: Notify | None,
    shared: Mapping[str, Any] | None = None,
    also: Callable[[Session], None] | None = None,
) -> None:
    """Move a running job to the state that its worker wants; if a client asked to cancel it, it ends canceled."""
    with database.transaction() as session:
        left = _write(session, held, before(values["state"]), values, told) or _cancel(session, held, told[:-1])
        if left is None:
            raise LeaseLost(held.job_id)
        as_wanted = left == values["state"]
        if also is not None and as_wanted:
            also(session)
        conclude(session, notify, held.job_id, left, shared if as_wanted else None)


def _of_another(error: JobError, job_id: str) -> JobError:
    """Return the error of a job that waited for another one, which failed of this."""
    return replace(error, detail=f"Job {job_id} was to make the same, and failed: {error.detail}")


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

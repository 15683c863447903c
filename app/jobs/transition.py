"""The one guarded statement that changes a job, and the hint that is given once the change is committed."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from functools import cache
from typing import Any

import structlog
from sqlalchemy import bindparam, update
from sqlalchemy.orm import Session
from sqlalchemy.sql.dml import ReturningUpdate

from app.database import after_commit, now
from app.jobs import events
from app.jobs.events import Event
from app.jobs.state import State
from app.jobs.tables import Job

log = structlog.get_logger(__name__)


GUARDS = {
    "fence": Job.fence == bindparam("guard_fence"),
    "expired_before": Job.lease_until < bindparam("guard_expired_before"),
}
Notify = Callable[[str, State], None]  # takes a job's id and its present state


def write(
    session: Session,
    job_id: str,
    states: Iterable[State],
    *,
    fence: int | None = None,
    expired_before: datetime | None = None,
    values: Mapping[str, Any],
    told: Sequence[Event] = (),
) -> State | None:
    """Change the job and write the events `told`, if the job is in one of `states` and the guards hold.

    There are two guards, each only if it is given: the job has this `fence`, and its lease ran out before
    `expired_before`. `values` maps columns to plain values, not to SQL expressions. Returns the job's new state, or
    None, with nothing written, if the job is in none of `states` or a guard does not hold.
    """
    wanted = {"fence": fence, "expired_before": expired_before}
    guards = tuple(name for name, value in wanted.items() if value is not None)
    given = {"job": job_id, "told": len(told)}
    given |= {f"guard_{name}": wanted[name] for name in guards} | {f"new_{name}": new for name, new in values.items()}
    row = session.connection().execute(_update(tuple(states), guards, tuple(values)), given).one_or_none()
    if row is None:
        return None
    events.write(session, job_id, row.last_event, told)
    return State(row.state)


@cache
def _update(states: tuple[State, ...], guards: tuple[str, ...], columns: tuple[str, ...]) -> ReturningUpdate[str, int]:
    """Return the statement with these guards that sets these columns; it is cached because building it is slow."""
    return (
        update(Job)
        .where(Job.id == bindparam("job"), Job.state.in_(states), *(GUARDS[name] for name in guards))
        .values(last_event=Job.last_event + bindparam("told"), **{name: bindparam(f"new_{name}") for name in columns})
        .returning(Job.state, Job.last_event)
    )


def ended(state: State) -> dict[str, Any]:
    """Return the column values of a job that enters a final state."""
    return {"state": state, "lease_until": None, "outage": None, "finished_at": now()}


def requeued() -> dict[str, Any]:
    """Return the column values of a job that goes back to its queue, where a worker finds it."""
    gone = dict.fromkeys(("worker", "lease_until", "again_at", "phase", "step", "total"))
    return {"state": State.QUEUED} | gone


def tell(session: Session, notify: Notify | None, job_id: str, state: State) -> None:
    """Once this session is committed, give the hint that a job has changed; if that fails, it is only logged."""
    if notify is not None:
        after_commit(session, lambda: _hint(notify, job_id, state))


def _hint(notify: Notify, job_id: str, state: State) -> None:
    try:
        notify(job_id, state)
    except Exception:
        log.warning("notify_failed", job_id=job_id, exc_info=True)

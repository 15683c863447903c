"""The one guarded statement by which a job moves, and the hint that goes out once it has."""

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
Notify = Callable[[str, State], None]  # a job, and the state it is in now


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
    """Change the job if it is in one of `states` and the guards hold, and tell `told`.

    The guards, where they are given: it has this fence, and its lease ran out before that moment. `values` are by
    column, and no expressions. Returns the state it is in now, or None, with nothing written, where they do not hold.
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
    """Return the statement with these guards that sets these columns; it is put together once, which takes a while."""
    return (
        update(Job)
        .where(Job.id == bindparam("job"), Job.state.in_(states), *(GUARDS[name] for name in guards))
        .values(last_event=Job.last_event + bindparam("told"), **{name: bindparam(f"new_{name}") for name in columns})
        .returning(Job.state, Job.last_event)
    )


def ended(state: State) -> dict[str, Any]:
    """Return what is written to a job that enters a final state."""
    return {"state": state, "lease_until": None, "finished_at": now()}


def requeued() -> dict[str, Any]:
    """Return what is written to a job that nobody holds now; without `sent_at` the next sweep sends it."""
    gone = dict.fromkeys(("worker", "lease_until", "sent_at", "phase", "step", "total"))
    return {"state": State.QUEUED} | gone


def tell(session: Session, notify: Notify | None, job_id: str, state: State) -> None:
    """Give the hint that a job has changed once this session is committed; its failure is only logged."""
    if notify is not None:
        after_commit(session, lambda: _hint(notify, job_id, state))


def _hint(notify: Notify, job_id: str, state: State) -> None:
    try:
        notify(job_id, state)
    except Exception:
        log.warning("notify_failed", job_id=job_id, exc_info=True)

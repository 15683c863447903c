"""The one guarded statement by which a job moves, and the hint that goes out once it has."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import structlog
from sqlalchemy import ColumnElement, update
from sqlalchemy.orm import Session

from app.database import after_commit, now
from app.jobs import events
from app.jobs.events import Event
from app.jobs.state import State
from app.jobs.tables import Job

log = structlog.get_logger(__name__)

Notify = Callable[[str, State], None]  # a job, and the state it is in now


def write(
    session: Session,
    job_id: str,
    states: Iterable[State],
    *guards: ColumnElement[bool],
    values: dict[str, Any],
    told: Sequence[Event] = (),
) -> State | None:
    """Change the job if it is in one of `states` and the guards hold, and tell `told`.

    Returns the state it is in now, or None, with nothing written, where they do not hold.
    """
    statement = (
        update(Job)
        .where(Job.id == job_id, Job.state.in_(list(states)), *guards)
        .values(last_event=Job.last_event + len(told), **values)
        .returning(Job.state, Job.last_event)
        .execution_options(synchronize_session=False)
    )
    row = session.execute(statement).one_or_none()
    if row is None:
        return None
    events.write(session, job_id, row.last_event, told)
    return State(row.state)


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

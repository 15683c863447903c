"""The events of a job, numbered from 1 without a gap.

The transaction that writes an event takes its number from the job's row. The lock on that row orders concurrent
writers. A transaction that is rolled back gives its number back, so it leaves no gap.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import insert, select, update
from sqlalchemy.orm import Session

from app.database import now
from app.errors import NotFound, shown
from app.jobs.tables import Job, JobEvent
from app.redaction import public_json


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened to a job: `type` is a stable word, `data` is JSON."""

    type: str
    data: dict[str, Any] = field(default_factory=dict)


def append(session: Session, job_id: str, type: str, data: dict[str, Any]) -> int:  # noqa: A002 - the column's name
    """Write one event and return its number; raises NotFound "job_not_found"."""
    counted = update(Job).where(Job.id == job_id).values(last_event=Job.last_event + 1).returning(Job.last_event)
    last = session.connection().execute(counted).scalar_one_or_none()
    if last is None:
        raise NotFound(f"There is no job '{shown(job_id)}'; GET /v1/jobs lists them.", code="job_not_found")
    write(session, job_id, last, [Event(type, data)])
    return last


def write(session: Session, job_id: str, last: int, events: Sequence[Event]) -> None:
    """Insert events; the caller's own UPDATE of the job has already raised `last_event` by their count, to `last`."""
    if not events:
        return
    first = last - len(events) + 1
    at = now()
    rows = [
        {"job_id": job_id, "seq": first + index, "type": event.type, "data": public_json(event.data), "at": at}
        for index, event in enumerate(events)
    ]
    session.connection().execute(insert(JobEvent), rows)


def list(session: Session, job_id: str, after: int = 0, limit: int = 50) -> Sequence[JobEvent]:  # noqa: A001 - read as events.list
    """Return up to `limit` events with a number above `after`, in order."""
    statement = (
        select(JobEvent).where(JobEvent.job_id == job_id, JobEvent.seq > after).order_by(JobEvent.seq).limit(limit)
    )
    return session.scalars(statement).all()

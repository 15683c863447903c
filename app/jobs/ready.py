"""Which queued jobs a worker may begin now. It is the claim that decides which worker does a job."""

from collections.abc import Sequence

from sqlalchemy import ColumnElement, and_, bindparam, or_, select

from app.database import Database, now
from app.jobs.sharing import waits_for_others
from app.jobs.state import State
from app.jobs.tables import Job


def due(moment: object) -> ColumnElement[bool]:
    """Return the condition that a job waits neither for an outage to pass nor for other jobs; `moment` is now."""
    return and_(or_(Job.again_at.is_(None), Job.again_at <= moment), ~waits_for_others())


READY = (
    select(Job.id)
    .where(
        Job.state == State.QUEUED,
        Job.queue == bindparam("queue"),
        due(bindparam("moment", type_=Job.again_at.type)),
    )
    .order_by(Job.id)
    .limit(bindparam("limit"))
)


def ready_jobs(database: Database, queues: Sequence[str], limit: int) -> list[str]:
    """Return the ids of up to `limit` jobs of these queues that can begin now, the oldest first."""
    moment = now()
    with database.reading() as session:
        ids = [
            job_id
            for queue in queues  # one after the other: each is a few steps in the index, however long the queues
            for job_id in session.scalars(READY, {"queue": queue, "moment": moment, "limit": limit})
        ]
    return sorted(ids)[:limit]

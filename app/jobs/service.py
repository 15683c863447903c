"""Making, reading and canceling jobs; a new job is sent to its workers once it is committed."""

import statistics
from collections.abc import Collection, Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import Select, bindparam, func, select
from sqlalchemy.orm import Session

from app.database import after_commit, now
from app.errors import NotFound, shown
from app.http.pagination import PageQuery, Rows, list_rows
from app.jobs import events, lease
from app.jobs.dispatch import Dispatch
from app.jobs.events import Event
from app.jobs.sharing import wait_for
from app.jobs.state import State
from app.jobs.tables import Job, Pruned
from app.registry.tables import Model
from app.remembered import remembered

HISTORY = 5  # the median of so many earlier jobs says how long the next one takes
EARLIER = (
    select(Job.started_at, Job.finished_at)
    .where(
        Job.likeness == bindparam("likeness"),
        Job.state == State.SUCCEEDED,
        Job.attempt == 1,  # a later attempt's duration contains the wait for a lease to run out
    )
    .order_by(Job.id.desc())
    .limit(HISTORY)
)


def bind_dispatch(session: Session, dispatch: Dispatch) -> None:
    """Set how the jobs that this session makes are sent once it is committed."""
    session.info["dispatch"] = dispatch


def create(
    session: Session,
    *,
    kind: str,
    model_id: int,
    queue: str,
    request: Mapping[str, Any],
    likeness: str,
    makes: str | None = None,
    after: Collection[str] = (),
) -> Job:
    """Queue a job; its id goes to the workers after the commit.

    `likeness` is a digest that jobs of like work have in common. The earlier ones say how long this one takes. `makes`
    is a digest of what the job makes. The job waits until the jobs `after` have ended (see `sharing`).
    """
    job = Job(
        kind=kind,
        model_id=model_id,
        model=_model_name(session, model_id),
        queue=queue,
        request=dict(request),
        likeness=likeness,
        expected_s=_expected_seconds(session, likeness),
        makes=makes,
        last_event=1,
    )
    session.add(job)
    session.flush()
    wait_for(session, job.id, after)
    waits = {"after": sorted(after)} if after else {}
    events.write(session, job.id, 1, [Event("queued", {"queue": queue} | waits)])
    dispatch: Dispatch | None = session.info.get("dispatch")
    if dispatch is not None and not after:
        after_commit(session, lambda: dispatch.send(job.id, queue))
    return job


def create_finished(
    session: Session,
    *,
    kind: str,
    model_id: int,
    queue: str,
    request: Mapping[str, Any],
    result: Mapping[str, Any],
) -> Job:
    """Record a job that has its result already."""
    moment = now()
    job = Job(
        kind=kind,
        state=State.SUCCEEDED,
        model_id=model_id,
        model=_model_name(session, model_id),
        queue=queue,
        request=dict(request),
        result=dict(result),
        created_at=moment,
        started_at=moment,
        finished_at=moment,
        last_event=1,
    )
    session.add(job)
    session.flush()
    events.write(session, job.id, 1, [Event("succeeded", {"result": dict(result)})])
    return job


def get_job(session: Session, job_id: str) -> Job:
    """Return a job; raises NotFound "job_not_found"."""
    job = session.get(Job, job_id)
    if job is None:
        raise NotFound(
            f"There is no job '{shown(job_id)}'.{_removed(job_id)} List jobs with GET /v1/jobs.", code="job_not_found"
        )
    return job


def require_events(job: Job) -> None:
    """Raise NotFound "events_removed" if retention has removed the events of a job that itself stays."""
    if job.pruned == Pruned.EVENTS:
        raise NotFound(
            f"The events of job '{job.id}' were removed: it ended more than ENGINESMITH_KEEP_JOBS_DAYS days ago. The "
            "job itself stays, because an engine names it.",
            code="events_removed",
        )


def list_jobs(
    session: Session, page: PageQuery, *, model_id: int | None, state: str | None, kind: str | None
) -> Rows[Job]:
    """Return one page of jobs, newest first."""
    statement: Select[Job] = select(Job)
    filters = {Job.model_id: model_id, Job.state: state, Job.kind: kind}
    for column, value in filters.items():
        if value is not None:
            statement = statement.where(column == value)
    return list_rows(session, statement, Job.id, page)


def count_by_state(session: Session) -> dict[tuple[str, str], int]:
    """Return the number of jobs by (kind, state)."""
    rows = session.execute(select(Job.kind, Job.state, func.count()).group_by(Job.kind, Job.state))
    return {(kind, state): count for kind, state, count in rows}


def eta_seconds(job: Job) -> float | None:
    """Return the seconds that a job is likely to need yet: the median of earlier jobs of like work, less its own time.

    None if there is no such job, if this job has ended, or if it takes longer than the median already.
    """
    if job.expected_s is None or job.finished_at is not None:
        return None
    elapsed = (now() - job.started_at) if job.started_at else timedelta()
    left = job.expected_s - elapsed.total_seconds()
    return round(left, 3) if left >= 0 else None


def request_cancel(session: Session, job_id: str) -> Job:
    """Ask a job to stop, and return it; raises NotFound "job_not_found".

    A queued job stops at once. A running one is stopped by its worker. A finished one stays as it is.
    """
    job = get_job(session, job_id)
    dispatch: Dispatch | None = session.info.get("dispatch")
    lease.request_cancel(session, job_id, notify=dispatch.announce if dispatch else None)
    session.refresh(job)
    return job


def _removed(job_id: str) -> str:
    """Return what is to be said of a job that may have been removed; its id has the time at which it was made."""
    with suppress(ValueError):
        identity = UUID(job_id)
        if identity.version == 7:
            made = datetime.fromtimestamp((identity.int >> 80) / 1000, UTC)
            return (
                f" If it was made when its id says, at {made:%Y-%m-%d %H:%M} UTC, it was removed: a job is, once it "
                "ended ENGINESMITH_KEEP_JOBS_DAYS days ago."
            )
    return ""


def _model_name(session: Session, model_id: int) -> str:
    def read() -> str:
        return session.scalars(select(Model.name).where(Model.id == model_id)).one()

    return remembered(session, "model name", model_id, read)


def _expected_seconds(session: Session, likeness: str) -> float | None:
    earlier = session.connection().execute(EARLIER, {"likeness": likeness})
    seconds = [
        (finished - started).total_seconds()
        for started, finished in earlier
        if started is not None and finished is not None
    ]
    return statistics.median(seconds) if seconds else None

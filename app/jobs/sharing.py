"""Jobs that wait for others, and jobs that make the same.

A job is not begun before those that it waits for have ended. Of jobs that make the same and are under way at once, the
later ones wait for the first. If it succeeds, they have its result, and if it fails for a reason that lasts, its error.
If it fails for another reason or is canceled, the oldest of them does the work, and the others wait for that one. All
of this happens in the transaction that ends the first, so a waiting job holds no worker and needs none to end.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from sqlalchemy import ColumnElement, bindparam, delete, exists, insert, select, update
from sqlalchemy.orm import Session, aliased

from app.database import now
from app.jobs.events import Event
from app.jobs.state import FINAL, State
from app.jobs.tables import Job, JobDependency
from app.jobs.transition import Notify, ended, tell, write

JOINED = (State.QUEUED, State.RUNNING)  # one that is being canceled makes nothing any more
_awaited = aliased(Job)
_waiter = aliased(Job)
FOLLOWERS = (
    select(_waiter.id)
    .join(JobDependency, JobDependency.job_id == _waiter.id)
    .join(_awaited, _awaited.id == JobDependency.awaited_id)
    .where(
        JobDependency.awaited_id == bindparam("leader"),
        _waiter.state == State.QUEUED,
        _waiter.makes == _awaited.makes,
    )
    .order_by(_waiter.id)
)


def waits_for_others() -> ColumnElement[bool]:
    """Return the condition that a job waits for another one that has not ended."""
    return exists().where(
        JobDependency.job_id == Job.id, _awaited.id == JobDependency.awaited_id, _awaited.state.not_in(FINAL)
    )


def wait_for(session: Session, job_id: str, others: Collection[str]) -> None:
    """Have a job wait until all the others have ended."""
    rows = [{"job_id": job_id, "awaited_id": other} for other in sorted({*others})]
    if rows:
        session.connection().execute(insert(JobDependency), rows)


def find_leader(session: Session, makes: str) -> str | None:
    """Return the oldest job under way that makes the same, and keep it from ending before this transaction does.

    The caller must have locked what keeps two calls from finding none at once.
    """
    statement = (
        select(Job.id)
        .where(Job.makes == makes, Job.state.in_(JOINED), ~exists().where(JobDependency.job_id == Job.id))
        .order_by(Job.id)
        .limit(1)
        .with_for_update()
    )
    return session.scalar(statement)


def conclude(
    session: Session, notify: Notify | None, job_id: str, state: State, shared: Mapping[str, Any] | None = None
) -> None:
    """Tell that a job has got this state, and, if it has ended, settle what becomes of the jobs that make the same.

    `shared` holds their "result" or their "error"; None has one of them do the work. Call it in the transaction that
    changed the job.
    """
    tell(session, notify, job_id, state)
    if state not in FINAL:
        return
    followers = session.scalars(FOLLOWERS, {"leader": job_id}).all()
    if not followers:
        return
    if shared is None:
        _succeed_to(session, notify, job_id, followers)
    else:
        _share(session, notify, job_id, followers, shared)


def _share(
    session: Session, notify: Notify | None, leader: str, followers: Sequence[str], shared: Mapping[str, Any]
) -> None:
    state = State.SUCCEEDED if "result" in shared else State.FAILED
    values = ended(state) | {"started_at": now(), "likeness": None} | dict(shared)
    told = [Event("shared", {"job": leader}), Event(state.value, dict(shared))]
    for follower in followers:
        if write(session, follower, (State.QUEUED,), values=values, told=told) is not None:
            tell(session, notify, follower, state)


def _succeed_to(session: Session, notify: Notify | None, leader: str, followers: Sequence[str]) -> None:
    """Have the oldest of the jobs that waited do the work, and the others wait for that one."""
    heir, *others = followers
    session.execute(delete(JobDependency).where(JobDependency.job_id == heir, JobDependency.awaited_id == leader))
    session.execute(
        update(JobDependency)
        .where(JobDependency.awaited_id == leader, JobDependency.job_id.in_(others))
        .values(awaited_id=heir)
        .execution_options(synchronize_session=False)
    )
    write(session, heir, (State.QUEUED,), values={"state": State.QUEUED}, told=[Event("took_over", {"job": leader})])
    tell(session, notify, heir, State.QUEUED)

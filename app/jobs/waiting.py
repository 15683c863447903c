"""What a job waits for, as the fleet is now.

Workers come and go while a job is queued, and may lose their store while they work on it. So the reason is computed
each time a job is read. Only an outage that the job itself has met is stored with it.
"""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import select
from sqlalchemy.orm import Session, aliased

from app.database import now
from app.fleet import service as fleet
from app.fleet.service import Consumer
from app.jobs.outage import Outage
from app.jobs.queue import backend_of, queue_of
from app.jobs.state import FINAL, HELD, State
from app.jobs.tables import Job, JobDependency
from app.settings import Settings

MAX_NAMED = 10  # jobs in a sentence


@dataclass(frozen=True, slots=True)
class Waiting:
    """Why a job does not begin or go on: a stable word for programs, and a sentence with the remedy.

    `again_at` is when the job is tried again, if it waits for that.
    """

    code: str
    detail: str
    again_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Waits:
    """What queued jobs wait for, by job and by queue, and the trouble of each worker that has one."""

    of_queue: Mapping[str, Waiting]
    of_worker: Mapping[str, str]
    of_job: Mapping[str, Waiting]


NOTHING = Waits({}, {}, {})


def waiting_of(settings: Settings, job: Job, waits: Waits) -> Waiting | None:
    """Return why a job does not begin or go on, None if it does or is about to; `waits` is from `waits_of`."""
    if job.state == State.RUNNING:
        trouble = waits.of_worker.get(str(job.worker))
        return None if trouble is None else _worker_in_trouble(trouble)
    if job.state != State.QUEUED:
        return None
    if job.outage is not None and job.again_at is not None and job.again_at > now():
        return _outage(settings, Outage.read(job.outage), job.again_at)
    return waits.of_job.get(job.id) or waits.of_queue.get(job.queue)


def waits_of(session: Session, settings: Settings, jobs: Collection[Job]) -> Waits:
    """Return why the queued ones among `jobs` have not begun, and what holds up the running ones.

    A queue is left out if one of its workers is free: its jobs begin in a moment.
    """
    queues = {job.queue for job in jobs if job.state == State.QUEUED}
    if not queues and all(job.state != State.RUNNING for job in jobs):
        return NOTHING
    consumers = fleet.consumers(session, settings)
    busy = _busy(session) if queues else frozenset()
    found = {queue: _reason(session, settings, queue, consumers, busy) for queue in queues}
    return Waits(
        {queue: reason for queue, reason in found.items() if reason is not None},
        {consumer.worker: consumer.trouble for consumer in consumers if consumer.trouble is not None},
        _of_jobs(session, [job.id for job in jobs if job.state == State.QUEUED]),
    )


def _of_jobs(session: Session, ids: Sequence[str]) -> dict[str, Waiting]:
    """Return what those jobs wait for that are not begun before others have ended."""
    waiter = aliased(Job)
    statement = (
        select(waiter.id, waiter.makes == Job.makes, Job.id)
        .join(JobDependency, JobDependency.job_id == waiter.id)
        .join(Job, Job.id == JobDependency.awaited_id)
        .where(waiter.id.in_(ids), Job.state.not_in(FINAL))
        .order_by(Job.id)
    )
    awaited: dict[str, list[str]] = defaultdict(list)
    found: dict[str, Waiting] = {}
    for job_id, makes_the_same, other in session.execute(statement):
        awaited[job_id].append(other)
        found[job_id] = _same_under_way(other) if makes_the_same else _jobs_under_way(awaited[job_id])
    return found


def _busy(session: Session) -> frozenset[str]:
    """Return the workers that hold a job now."""
    held = select(Job.worker).where(Job.state.in_(HELD), Job.lease_until >= now(), Job.worker.is_not(None))
    return frozenset(str(worker) for worker in session.scalars(held))


def _reason(
    session: Session, settings: Settings, queue: str, consumers: Sequence[Consumer], busy: Collection[str]
) -> Waiting | None:
    takers = [consumer for consumer in consumers if queue in consumer.queues]
    fit = [taker.worker for taker in takers if taker.trouble is None]
    if fit:
        return _workers_busy(len(fit)) if all(worker in busy for worker in fit) else None
    if takers:
        return _workers_in_trouble(len(takers), str(takers[0].trouble))
    backend = backend_of(queue)
    others = sum(queue_of(backend) in consumer.queues for consumer in consumers)
    return _no_worker_of_platform(queue, others) if others else _no_worker(session, settings, backend)


def _same_under_way(job_id: str) -> Waiting:
    return Waiting(
        "same_under_way",
        f"Job {job_id} makes the same and is under way. This one ends with it and has its result. If that one is "
        "canceled or fails for a reason that may pass, this one begins.",
    )


def _jobs_under_way(job_ids: Sequence[str]) -> Waiting:
    count = len(job_ids)
    others = f"{count} other jobs have" if count > 1 else "another job has"
    return Waiting("jobs_under_way", f"It begins once {others} ended: {', '.join(job_ids[:MAX_NAMED])}.")


def _workers_busy(count: int) -> Waiting:
    who = "The only worker that can do it is" if count == 1 else f"All {count} workers that can do it are"
    return Waiting("workers_busy", f"{who} at work on other jobs. The job begins when it is its turn.")


def _workers_in_trouble(count: int, trouble: str) -> Waiting:
    who = "The only worker that can do it begins" if count == 1 else f"All {count} workers that can do it begin"
    return Waiting("workers_in_trouble", f"{who} no jobs for now: {trouble} Every few seconds it is tried again.")


def _worker_in_trouble(trouble: str) -> Waiting:
    return Waiting("worker_in_trouble", f"It was begun, and its worker tries every few seconds to go on: {trouble}")


def _outage(settings: Settings, outage: Outage, again_at: datetime) -> Waiting:
    times = "once" if outage.times == 1 else f"{outage.times} times"
    up_to = outage.since_moment + timedelta(seconds=settings.outage_limit_s)
    return Waiting(
        "outage",
        f"It was put off {times} since {outage.since_moment:%H:%M:%S} UTC, at last because of '{outage.code}': "
        f"{outage.detail} It begins again at {again_at:%H:%M:%S} UTC, and fails if that lasts beyond "
        f"{up_to:%Y-%m-%d %H:%M:%S} UTC.",
        again_at,
    )


def _no_worker_of_platform(queue: str, others: int) -> Waiting:
    backend = backend_of(queue)
    platform = queue.removeprefix(f"{queue_of(backend)}.")
    return Waiting(
        "no_worker_of_platform",
        f"No worker alive serves the platform '{platform}' of '{backend}'; {others} serve others. Start a worker with "
        "that version on such a device, or cancel the job. GET /v1/workers lists those alive.",
    )


def _no_worker(session: Session, settings: Settings, backend: str) -> Waiting:
    reasons = fleet.unavailable(session, settings, backend)
    unusable = "".join(f" A worker has it installed but cannot use it: {reason}" for reason in reasons)
    return Waiting(
        "no_worker",
        f"No worker alive offers '{backend}'.{unusable} Start a worker that does, or cancel the job. GET /v1/workers "
        "lists those alive.",
    )

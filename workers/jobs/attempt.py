"""One job from its message to its end: claim, load, compute, publish and finish.

However a job ends, its row says so. If that cannot be written because the database is down, the lease runs out, and a
sweep queues the job for another attempt.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec

import structlog

from app.artifacts import service as artifacts
from app.database import DATABASE_DOWN
from app.jobs import lease
from app.jobs.lease import CancelAsked, Claim, LeaseLost
from workers.jobs.faults import ShuttingDown, fault_of
from workers.jobs.kinds import steps_of
from workers.jobs.steps import Product, Ready, Steps
from workers.jobs.watch import Watch
from workers.jobs.worker import Worker

log = structlog.get_logger(__name__)

P = ParamSpec("P")


def run_job(worker: Worker, job_id: str) -> None:
    """Do a job if it is still queued; whatever goes wrong with it is written to its row."""
    if worker.stopping.is_set():
        return  # the job stays queued, and a sweep sends it to another worker
    held = lease.claim(worker.database, job_id, worker=worker.id, settings=worker.settings, notify=worker.announce)
    if held is None:
        log.debug("nothing to claim", job_id=job_id)
        return
    worker.job_id = job_id
    try:
        with (
            structlog.contextvars.bound_contextvars(job_id=job_id, kind=held.kind, attempt=held.attempt),
            tempfile.TemporaryDirectory(prefix="job-", dir=worker.scratch, ignore_cleanup_errors=True) as folder,
        ):
            _run(worker, held, Watch(worker, held, Path(folder)))
    finally:
        worker.job_id = None


def _run(worker: Worker, held: Claim, watch: Watch) -> None:
    try:
        _do(worker, held, watch)
    except LeaseLost:
        log.warning("lease lost, result thrown away")
    except CancelAsked:
        _end(_cancel, worker, held, watch)
    except ShuttingDown:
        _end(_release, worker, held, watch)
    except Exception as error:  # noqa: BLE001 - the boundary where every fault becomes the job's own
        _end(_give_up, worker, held, watch, error)
    else:
        log.info("job succeeded", seconds=round(watch.seconds, 3))


def _do(worker: Worker, held: Claim, watch: Watch) -> None:
    steps = steps_of(held.kind)
    work = steps.work.read(held.request)
    with worker.database.reading() as session:
        job = steps.load(session, held, work, worker)
    if isinstance(job, Ready):
        with worker.database.transaction() as session:
            lease.succeed(session, held, job.result, was_ready=True, notify=worker.announce)
        return
    with worker.store.holding():  # a compile may take longer than a cache keeps an unused file
        product = steps.compute(job, worker, watch)
    worker.through_outage(lambda: _publish(worker, held, watch, steps, job, product))


def _publish(
    worker: Worker, held: Claim, watch: Watch, steps: Steps[Any, Any, Any], job: object, product: Product
) -> None:
    """Write what was made and finish the job, in one transaction."""
    with worker.database.transaction() as session:
        for digest, size in product.blobs.items():
            artifacts.record(session, digest, size)
        result = steps.publish(session, held, job, product)
        lease.succeed(session, held, result, events=watch.news.events, notify=worker.announce)


def _cancel(worker: Worker, held: Claim, watch: Watch) -> None:
    lease.cancel(worker.database, held, events=watch.news.events, notify=worker.announce)


def _release(worker: Worker, held: Claim, watch: Watch) -> None:
    lease.release(worker.database, held, "the worker was stopped", events=watch.news.events, notify=worker.announce)


def _give_up(worker: Worker, held: Claim, watch: Watch, cause: Exception) -> None:
    fault = fault_of(cause, watch.news.tail)
    if fault.passing and worker.stopping.is_set():
        return _release(worker, held, watch)  # whoever stops a worker may stop its engine host as well
    again = fault.passing and held.attempt < worker.settings.max_attempts
    log.warning("job retried" if again else "job failed", code=fault.error.code, detail=fault.error.detail)
    leave = lease.retry if again else lease.fail
    return leave(worker.database, held, fault.error, events=watch.news.events, notify=worker.announce)


def _end(write: Callable[P, None], *args: P.args, **kwargs: P.kwargs) -> None:
    try:
        write(*args, **kwargs)
    except LeaseLost:
        log.warning("lease lost before the job's end could be written")
    except DATABASE_DOWN as error:
        log.warning("the job's end was not written; its lease will run out", error=str(error))

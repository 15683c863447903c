"""One job from its message to its end: claim, load, compute, publish and finish.

However a job ends, its row says so. If that cannot be written because the database is down, the lease runs out, and a
sweep queues the job for another attempt.
"""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Concatenate, ParamSpec

import structlog
from sqlalchemy.orm import Session

from app.artifacts import service as artifacts
from app.database import DATABASE_DOWN
from app.jobs import lease, outage
from app.jobs.lease import CancelAsked, Claim, JobError, LeaseLost
from workers.jobs.crashes import Crash
from workers.jobs.faults import MAX_STRIKES, Fault, ShuttingDown, died_again, fault_of
from workers.jobs.kinds import steps_of
from workers.jobs.steps import Product, Ready, Steps
from workers.jobs.watch import Watch
from workers.jobs.worker import Worker

log = structlog.get_logger(__name__)

P = ParamSpec("P")


def run_job(worker: Worker, job_id: str) -> bool:
    """Do a job if it is still queued, and return whether it was; what goes wrong with it is written to its row."""
    if worker.stopping.is_set():
        return False  # the job stays queued for another worker
    held = lease.claim(worker.database, job_id, worker=worker.id, settings=worker.settings, notify=worker.announce)
    if held is None:
        log.debug("nothing to claim", job_id=job_id)
        return False
    worker.job_id = job_id
    try:
        with structlog.contextvars.bound_contextvars(job_id=job_id, kind=held.kind, attempt=held.attempt):
            _run(worker, held, Watch(worker, held, worker.scratch / f"job-{job_id}"))
    finally:
        worker.job_id = None
    return True


def _run(worker: Worker, held: Claim, watch: Watch) -> None:
    try:
        with _made(watch.folder):
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


@contextmanager
def _made(folder: Path) -> Iterator[None]:
    """Make a folder, and remove it with all that is in it when the block ends."""
    folder.mkdir(exist_ok=True)
    try:
        yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _do(worker: Worker, held: Claim, watch: Watch) -> None:
    steps = steps_of(held.kind)
    work = steps.work.read(held.request)
    with worker.database.reading() as session:
        job = steps.load(session, held, work, worker)
    if isinstance(job, Ready):
        with worker.database.transaction() as session:
            shared = _shared(steps, job.result)
            lease.succeed(session, held, job.result, was_ready=True, shared=shared, notify=worker.announce)
        return
    if held.strikes:
        worker.host.close()  # so that what killed the last one has the next one to itself
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
        shared, told = _shared(steps, result), watch.news.events
        lease.succeed(session, held, result, shared=shared, events=told, notify=worker.announce)


def _shared(steps: Steps[Any, Any, Any], result: dict[str, Any]) -> dict[str, Any] | None:
    return None if steps.shared is None else steps.shared(result)


def _cancel(worker: Worker, held: Claim, watch: Watch) -> None:
    lease.cancel(worker.database, held, events=watch.news.events, notify=worker.announce)


def _release(worker: Worker, held: Claim, watch: Watch) -> None:
    lease.release(worker.database, held, "the worker was stopped", events=watch.news.events, notify=worker.announce)


def _give_up(worker: Worker, held: Claim, watch: Watch, cause: Exception) -> None:
    fault = fault_of(cause, watch.news.tail)
    if fault.passing and worker.stopping.is_set():
        return _release(worker, held, watch)  # whoever stops a worker may stop its engine host as well
    _notice(worker, fault)
    if fault.outage and _put_off(worker, held, watch, fault.error):
        return None
    if fault.strike and held.strikes + fault.strike >= MAX_STRIKES:
        return _fail_for_good(worker, held, watch, fault)
    if fault.outage or not fault.passing or held.attempt >= worker.settings.max_attempts:
        return _fail(worker, held, watch, fault.error, lasting=not fault.passing)
    log.warning("job retried", code=fault.error.code, detail=fault.error.detail)
    events = watch.news.events
    return lease.retry(
        worker.database,
        held,
        fault.error,
        strike=fault.strike,
        crash=fault.crash and watch.compiling,
        events=events,
        notify=worker.announce,
    )


def _fail_for_good(worker: Worker, held: Claim, watch: Watch, fault: Fault) -> None:
    """Fail a job of which the engine host died again; if its compiler crashed both times, that is taken down."""
    steps = steps_of(held.kind)
    taken_down = steps.crashed
    if taken_down is None or not watch.compiling or held.crashes + fault.crash < MAX_STRIKES:
        return _fail(worker, held, watch, died_again(fault.error), lasting=True)
    crash = Crash.of(fault.error.detail, watch.news.recent)

    def take_down(session: Session) -> None:
        taken_down(session, held, steps.work.read(held.request), worker, crash)

    return _fail(worker, held, watch, died_again(fault.error, crash), lasting=True, also=take_down)


def _notice(worker: Worker, fault: Fault) -> None:
    if fault.cut_off == "store":
        worker.fitness.lost_store(fault.error.detail)
    if fault.cut_off == "host":
        worker.fitness.lost_host(fault.error.detail)


def _put_off(worker: Worker, held: Claim, watch: Watch, error: JobError) -> bool:
    """Give the job back until its outage may have passed; False if that lasts too long by now."""
    met = outage.next_outage(held.outage, error.code, error.detail)
    if outage.lasts_too_long(met, worker.settings.outage_limit_s):
        return False
    log.warning("job put off", code=error.code, detail=error.detail, times=met.times)
    lease.put_off(worker.database, held, met, events=watch.news.events, notify=worker.announce)
    return True


def _fail(
    worker: Worker,
    held: Claim,
    watch: Watch,
    error: JobError,
    *,
    lasting: bool,
    also: Callable[[Session], None] | None = None,
) -> None:
    log.warning("job failed", code=error.code, detail=error.detail)
    events = watch.news.events
    lease.fail(worker.database, held, error, lasting=lasting, also=also, events=events, notify=worker.announce)


def _end(write: Callable[Concatenate[Worker, P], None], worker: Worker, *args: P.args, **kwargs: P.kwargs) -> None:
    """Write how a job has ended; if the database does not answer, wait for it, as there is nothing else to do."""
    try:
        worker.through_outage(lambda: write(worker, *args, **kwargs))
    except LeaseLost:
        log.warning("lease lost before the job's end could be written")
    except DATABASE_DOWN as error:
        log.warning("the job's end was not written; its lease will run out", error=str(error))

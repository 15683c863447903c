"""The loop of a worker: one job after the other, from the broker's messages and straight from the database.

A message starts a job at once. The database is looked into every second or two, so a job whose message is lost, or
that was posted while the broker was gone, starts all the same. It is the claim that decides who does a job. A worker
whose store or engine host is gone takes nothing from either.
"""

import random
import signal
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from types import FrameType

import structlog

from app.database import DATABASE_DOWN
from app.fleet import service as fleet
from app.jobs.ready import ready_jobs
from workers.celery import Inbox
from workers.jobs.attempt import run_job
from workers.jobs.faults import ShuttingDown
from workers.jobs.worker import Worker

LOOK_S = 1.5  # on the average: an idle worker asks the database so often
SPREAD = 0.2  # so that workers which started together do not ask together
UNFIT_S = 0.1
LISTEN_S = 0.5  # a signal is noticed within this time
CANDIDATES = 8  # several, because other workers may be about to claim the first
log = structlog.get_logger(__name__)


def consume(worker: Worker) -> None:
    """Do jobs until the process is told to stop.

    SIGTERM and SIGINT set `worker.stopping`: the job at hand is given back, then this returns.
    """
    with _stopped_by_signals(worker), closing(Inbox(worker.settings.broker_url, worker.queues)) as inbox:
        log.info("worker ready", worker=worker.id, device=worker.device, queues=worker.queues)
        look_at = 0.0
        was_fit = True
        while not worker.stopping.is_set():
            fit = _fit(worker)
            if fit != was_fit:
                _report(worker)
                was_fit = fit
            if not fit:
                worker.stopping.wait(UNFIT_S)
                continue
            if time.monotonic() >= look_at:
                found = do_ready_job(worker)
                look_at = 0.0 if found else time.monotonic() + LOOK_S * random.uniform(1 - SPREAD, 1 + SPREAD)  # noqa: S311 - no secret
                continue
            job_id = inbox.next(min(LISTEN_S, max(0.0, look_at - time.monotonic())), worker.stopping.wait)
            if job_id is not None:
                do_job(worker, job_id)


def _fit(worker: Worker) -> bool:
    try:
        return worker.fitness.regained()
    except ShuttingDown:
        return False


def _report(worker: Worker) -> None:
    with suppress(*DATABASE_DOWN):  # the housekeeping reports again soon
        fleet.report(worker.database, worker.report())


def do_ready_job(worker: Worker) -> bool:
    """Do the oldest job in the database that is ready for this worker; False if there is none that it gets."""
    try:
        ids = ready_jobs(worker.database, worker.queues, CANDIDATES)
    except DATABASE_DOWN as error:
        log.warning("cannot look for jobs", error=str(error))
        return False
    return any(do_job(worker, job_id) for job_id in ids)


def do_job(worker: Worker, job_id: str) -> bool:
    """Do a job if this worker gets it; False if it does not, or if the database does not answer."""
    try:
        return run_job(worker, job_id)
    except DATABASE_DOWN as error:
        log.warning("job not claimed; it is in the database", job_id=job_id, error=str(error))
        return False


@contextmanager
def _stopped_by_signals(worker: Worker) -> Iterator[None]:
    def stop(_number: int, _frame: FrameType | None) -> None:
        worker.stopping.set()

    previous = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)

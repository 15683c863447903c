"""How job ids get from the broker to this process.

Celery is only a transport here. A message says that there may be a job, and is acknowledged before the job
starts. The database says whether the job exists and whether it is done.
"""

import logging
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import structlog
from celery import Celery, signals
from celery.apps.worker import Worker as CeleryWorker
from celery.exceptions import CPendingDeprecationWarning
from celery.platforms import EX_OK, SecurityWarning
from celery.worker import state

from app.database import DATABASE_DOWN
from app.jobs.queue import TASK
from workers.jobs.attempt import run_job
from workers.jobs.worker import Worker

SOCKET_TIMEOUT_S = 5.0
log = structlog.get_logger(__name__)


def celery_app(worker: Worker) -> Celery:
    """Make the Celery app of this worker."""
    app = Celery("enginesmith", broker=worker.settings.broker_url, set_as_current=False)
    app.conf.update(
        accept_content=["json"],
        task_serializer="json",
        task_ignore_result=True,
        task_acks_late=False,
        task_reject_on_worker_lost=False,
        task_create_missing_queues=True,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_transport_options={
            "socket_timeout": SOCKET_TIMEOUT_S,
            "socket_connect_timeout": SOCKET_TIMEOUT_S,
            "socket_keepalive": True,
        },
        worker_enable_remote_control=False,
        worker_hijack_root_logger=False,
        worker_prefetch_multiplier=1,
        worker_redirect_stdouts=False,
        worker_send_task_events=False,
    )

    @app.task(name=TASK, ignore_result=True, shared=False)  # type: ignore[untyped-decorator]  # Celery ships no types
    def run(job_id: str) -> None:
        try:
            run_job(worker, job_id)
        except DATABASE_DOWN as error:
            log.warning("job not claimed; a sweep will send it again", job_id=job_id, error=str(error))

    return app


def consume(worker: Worker) -> int:
    """Do jobs until the process is told to stop; returns its exit status.

    SIGTERM and SIGINT set `worker.stopping`: the job at hand is given back, then Celery stops.
    """

    def ready(**_signal: Any) -> None:  # noqa: ANN401 - Celery's signature
        log.info("worker ready", worker=worker.id, device=worker.device, queues=worker.queues)

    signals.worker_ready.connect(ready)
    _quiet()
    try:
        program = _Program(
            app=celery_app(worker),
            hostname=f"enginesmith@{worker.id}",
            queues=list(worker.queues),
            pool="solo",
            concurrency=1,
            quiet=True,
            loglevel=worker.settings.log_level,
            without_gossip=True,
            without_heartbeat=True,
            without_mingle=True,
        )
        with _stopped_by_signals(worker):
            program.start()
    finally:
        signals.worker_ready.disconnect(ready)
    return int(program.exitcode or 0)


class _Program(CeleryWorker):  # type: ignore[misc]  # Celery ships no types
    def install_platform_tweaks(self, worker: object) -> None:
        """Install none of Celery's signal handlers: they print, and the one for SIGHUP starts the program anew."""


@contextmanager
def _stopped_by_signals(worker: Worker) -> Iterator[None]:
    def stop(_number: int, _frame: FrameType | None) -> None:
        worker.stopping.set()
        state.should_stop = EX_OK

    previous = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _quiet() -> None:
    """Silence all of Celery's log but its warnings: `run_job` logs each job itself."""
    logging.getLogger("celery").setLevel(logging.WARNING)
    # A worker that runs as root is dangerous if messages are pickled. Here they are JSON and hold nothing but an id.
    warnings.filterwarnings("ignore", category=SecurityWarning)
    warnings.filterwarnings("ignore", category=CPendingDeprecationWarning)  # about late acks, which are not used here

"""The one task there is."""

import structlog
from celery import Celery

from app.database import DATABASE_DOWN
from app.jobs.queue import TASK
from workers.jobs.attempt import run_job
from workers.jobs.worker import Worker

log = structlog.get_logger(__name__)


def register(app: Celery, worker: Worker) -> None:
    """Make the app do jobs with this worker."""

    @app.task(name=TASK, ignore_result=True, shared=False)  # type: ignore[untyped-decorator]  # Celery ships no types
    def run(job_id: str) -> None:
        try:
            run_job(worker, job_id)
        except DATABASE_DOWN as error:
            log.warning("job not claimed; a sweep will send it again", job_id=job_id, error=str(error))

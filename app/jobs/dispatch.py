"""How the API makes a new or changed job known; the client does not wait for the broker."""

from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import structlog

from app.jobs.state import State
from app.jobs.transition import Notify

log = structlog.get_logger(__name__)


class Queue(Protocol):
    """The sending end of the broker."""

    def send(self, job_id: str, queue: str) -> object:
        """Tell the workers of a queue about a job."""

    def close(self) -> None:
        """Close the connections to the broker."""


class Dispatch:
    """Sends job ids and notices one after the other in a thread of its own, so a broker that hangs delays no answer.

    If the process ends with job ids unsent, workers find the jobs in the database.
    """

    def __init__(self, queue: Queue, announce: Notify) -> None:
        self._queue = queue
        self._announce = announce
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="dispatch")

    def send(self, job_id: str, queue: str) -> None:
        """Tell the workers of a queue about a new job."""
        self._thread.submit(self._send, job_id, queue)

    def announce(self, job_id: str, state: State) -> None:
        """Tell those who wait for a job that it has changed, with its present state."""
        self._thread.submit(self._announce, job_id, state)

    def close(self) -> None:
        """Drop what is not sent yet, and close the connections to the broker."""
        self._thread.shutdown(wait=False, cancel_futures=True)
        self._queue.close()

    def _send(self, job_id: str, queue: str) -> None:
        try:
            self._queue.send(job_id, queue)
        except Exception:  # the job is in the database, and this thread has to go on with the next one
            log.exception("job not sent; a worker will find it in the database", job_id=job_id)

"""How a new or changed job is made known, without its client waiting for the broker."""

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
    """Sends job ids and notices one after the other in a thread of its own: a broker that hangs holds up no answer.

    What is not sent when the process ends is sent by a sweep.
    """

    def __init__(self, queue: Queue, announce: Notify) -> None:
        self._queue = queue
        self._announce = announce
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="dispatch")

    def send(self, job_id: str, queue: str) -> None:
        """Tell the workers of a queue about a new job."""
        self._thread.submit(self._send, job_id, queue)

    def announce(self, job_id: str, state: State) -> None:
        """Tell whoever waits that a job has changed, and what its state is now."""
        self._thread.submit(self._announce, job_id, state)

    def close(self) -> None:
        """Send nothing more."""
        self._thread.shutdown(wait=False, cancel_futures=True)
        self._queue.close()

    def _send(self, job_id: str, queue: str) -> None:
        try:
            self._queue.send(job_id, queue)
        except Exception:  # the job is in the database; whatever is wrong here, the next one goes on
            log.exception("job not sent; the sweep will send it", job_id=job_id)

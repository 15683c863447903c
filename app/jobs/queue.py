"""Job ids on their way to the workers.

A message is a hint: it carries a job's id and nothing else. If a message is lost, a worker finds the job in the
database. If it comes twice, the second one finds the job claimed.
"""

import re
from functools import cached_property
from typing import Any
from urllib.parse import urlsplit

import structlog
from celery import Celery
from kombu.exceptions import OperationalError

TASK = "enginesmith.run_job"
SOCKET_TIMEOUT_S = 3.0
BINDINGS = ("_kombu.binding.", "_kombu.binding_permanent.")  # before a queue's name: the sets in which kombu notes it
ONE_LIST_A_QUEUE: dict[str, Any] = {"priority_steps": [0]}  # kombu's default is one list for each of four priorities
_SLUG = re.compile(r"[^a-z0-9.]+")
log = structlog.get_logger()


def queue_of(backend: str, platform: str | None = None) -> str:
    """Return the queue of the workers that have this backend; with a platform, of those that load its engines."""
    queue = f"enginesmith.{backend}"
    return queue if platform is None else f"{queue}.{_SLUG.sub('-', platform.lower())}"


def backend_of(queue: str) -> str:
    """Return the backend of a queue that `queue_of` has named."""
    return queue.split(".")[1]


def redis_url(broker_url: str) -> str:
    """Return the broker's URL as redis-py spells it: a socket is unix:// there and redis+socket:// in Celery."""
    parts = urlsplit(broker_url)
    return f"unix://{parts.path}" if parts.scheme == "redis+socket" else broker_url


class JobQueue:
    """The sending end of the broker."""

    def __init__(self, broker_url: str) -> None:
        self.broker_url = broker_url

    def send(self, job_id: str, queue: str) -> bool:
        """Tell the workers of a queue about a job; False if the broker does not answer."""
        try:
            self._celery.send_task(TASK, args=[job_id], queue=queue, retry=False, ignore_result=True)
        except (OperationalError, OSError) as error:
            log.warning("job not sent; a worker will find it in the database", job_id=job_id, error=str(error))
            return False
        return True

    def close(self) -> None:
        """Close the connections to the broker."""
        if "_celery" in self.__dict__:
            self._celery.close()

    @cached_property
    def _celery(self) -> Celery:
        app = Celery("enginesmith", broker=self.broker_url, set_as_current=False)
        app.conf.update(
            broker_transport_options=ONE_LIST_A_QUEUE
            | {
                "socket_connect_timeout": SOCKET_TIMEOUT_S,
                "socket_timeout": SOCKET_TIMEOUT_S,
                "max_retries": 0,
            },
            task_serializer="json",
            accept_content=["json"],
            task_ignore_result=True,
        )
        return app

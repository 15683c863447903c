"""How job ids get from the broker to this process.

Celery is only a transport here. A message says that there may be a job, and is gone from the broker once it is read.
The database says whether the job exists and whether it is done. So whatever lies in a queue and is no such message is
dropped, and a broker that is gone is no error.
"""

import random
import time
import warnings
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any
from uuid import UUID

import structlog
from celery import Celery
from celery.exceptions import CPendingDeprecationWarning
from kombu.exceptions import InconsistencyError, OperationalError
from redis import RedisError, ResponseError

from app.jobs.queue import BINDINGS, ONE_LIST_A_QUEUE, TASK

SOCKET_TIMEOUT_S = 1.0  # a broker that does not answer holds up the look into the database for no longer
RECONNECT_S = 1.0
SAY_S = 1.0
WRONG_TYPE = "WRONGTYPE"
GONE = (OperationalError, InconsistencyError, RedisError, OSError)
log = structlog.get_logger(__name__)


class Inbox:
    """The receiving end of the broker, for some queues. All calls are made from one thread.

    A message may wait unread in this process while it does a job that it did not get from here. Another worker then
    finds that message's job in the database.
    """

    def __init__(self, broker_url: str, queues: Sequence[str]) -> None:
        warnings.filterwarnings("ignore", category=CPendingDeprecationWarning)  # about late acks, which are not used
        self._queues = queues
        self._received: deque[str] = deque()
        self._connection: Any = None  # of kombu, whose types are in part only
        self._connect_at = 0.0
        self._answers = True
        self._dropped, self._say_at = 0, 0.0
        self._app = Celery("enginesmith", broker=broker_url, set_as_current=False)
        self._app.conf.update(
            accept_content=["json"],
            broker_transport_options=ONE_LIST_A_QUEUE
            | {
                "max_retries": 0,
                "socket_timeout": SOCKET_TIMEOUT_S,
                "socket_connect_timeout": SOCKET_TIMEOUT_S,
                "socket_keepalive": True,
            },
        )

    def next(self, timeout_s: float, wait: Callable[[float], object] = time.sleep) -> str | None:
        """Return the job id of the next message, None if none has come within `timeout_s` seconds.

        As long as the broker does not answer, the time is spent in `wait`.
        """
        if not self._received and self._connected(timeout_s, wait):
            self._receive(timeout_s)
        return self._received.popleft() if self._received else None

    def close(self) -> None:
        """Close the connections to the broker."""
        self._disconnect()
        self._app.close()

    def _connected(self, timeout_s: float, wait: Callable[[float], object]) -> bool:
        if self._connection is not None:
            return True
        delay = self._connect_at - time.monotonic()
        if delay > 0:
            wait(min(delay, timeout_s))
            return False
        try:
            self._connect()
        except Exception as error:  # noqa: BLE001 - redis, kombu and sockets each have errors of their own
            self._gone(error)
            return False
        if not self._answers:
            log.info("the broker answers again")
        self._answers = True
        return True

    def _connect(self) -> None:
        self._connection = connection = self._app.connection_for_read()
        channel = connection.default_channel
        channel.qos.restore_visible = _nothing  # it looks for messages that were never acknowledged: there are none
        self._app.amqp.TaskConsumer(
            channel,
            queues=[self._app.amqp.queues[name] for name in self._queues],
            no_ack=True,
            on_message=self._hear,
        ).consume()

    def _receive(self, timeout_s: float) -> None:
        connection = self._connection
        if connection is None:
            return
        try:
            connection.drain_events(timeout=timeout_s)
        except TimeoutError:  # of `drain_events`: nothing came
            return
        except GONE as error:
            self._gone(error)
        except Exception as error:  # noqa: BLE001 - whatever a message can make kombu stumble over; it is read already
            self._drop(error)

    def _hear(self, message: Any) -> None:  # noqa: ANN401 - of kombu
        try:
            self._received.append(job_id_of(message))
        except Exception as error:  # noqa: BLE001 - the message may be anything, and so may what is raised
            self._drop(error)

    def _drop(self, error: Exception) -> None:
        """Say that a message was dropped; of a flood of them, once a second."""
        self._dropped += 1
        if time.monotonic() >= self._say_at:
            told = f"{type(error).__name__}: {str(error)[:200]}"
            log.warning("dropped messages that name no job", count=self._dropped, last=told)
            self._dropped, self._say_at = 0, time.monotonic() + SAY_S

    def _gone(self, error: Exception) -> None:
        if isinstance(error, ResponseError) or WRONG_TYPE in str(error):
            self._clear_wrong_types(error)
        self._disconnect()
        self._connect_at = time.monotonic() + RECONNECT_S * random.uniform(0.8, 1.0)  # noqa: S311 - no secret
        if self._answers:
            log.warning("the broker does not answer; jobs are taken from the database", error=str(error))
        self._answers = False

    def _clear_wrong_types(self, error: Exception) -> None:
        """Remove what has the name of one of our queues and is none: as long as it is there, nothing can be read."""
        if self._connection is None or WRONG_TYPE not in str(error):
            return
        wanted = dict.fromkeys(self._queues, b"list") | {
            before + name: b"set" for before in BINDINGS for name in self._queues
        }
        with suppress(RedisError, OperationalError, OSError):
            client = self._connection.default_channel.client
            wrong = [key for key, kind in wanted.items() if client.type(key) not in {kind, b"none"}]
            if wrong:
                client.delete(*wrong)
                log.warning("dropped what is no queue but had the name of one", keys=wrong)

    def _disconnect(self) -> None:
        if self._connection is not None:
            with suppress(Exception):  # it may be broken already
                self._connection.release()
        self._connection = None


def job_id_of(message: Any) -> str:  # noqa: ANN401 - of kombu
    """Return the job id that a message of `JobQueue.send` carries; raises whatever any other message makes it raise."""
    task = message.headers["task"]
    if task != TASK:
        raise ValueError(f"the task {str(task)[:80]!r} is not ours")
    (job_id,) = message.decode()[0]
    return str(UUID(job_id))


def _nothing(**_options: int) -> None:
    pass

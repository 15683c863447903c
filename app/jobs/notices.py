"""Notices that a job has changed, from the process that changed it to those that wait for it.

A notice says the job's id and its present state. It travels by Redis publish/subscribe and may be lost, so a waiter
looks at the job's row from time to time as well.
"""

import asyncio
import time
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress

import redis
import redis.asyncio
import structlog

from app.jobs.state import FINAL, State

CHANNEL = "enginesmith.jobs"
RECONNECT_S = 1.0
CANCEL_AGAIN_S = 0.1
SOCKET_TIMEOUT_S = 1.0
SILENCE_S = 5.0
ENDS_KEPT = 1000  # jobs that ended last: a waiter may come just after the notice of the end
log = structlog.get_logger()


class Announcer:
    """The sending end; if the broker does not answer, that is logged and raises no error.

    It then says nothing for a while, because a job must not wait for a broker that hangs.
    """

    def __init__(self, url: str) -> None:
        self._client = redis.Redis.from_url(
            url, socket_timeout=SOCKET_TIMEOUT_S, socket_connect_timeout=SOCKET_TIMEOUT_S, retry=None
        )
        self._silent_until = 0.0

    def __call__(self, job_id: str, state: State) -> None:
        """Say that a job has changed, with its present state."""
        if time.monotonic() < self._silent_until:
            return
        try:
            self._client.publish(CHANNEL, f"{job_id} {state}")
        except redis.RedisError as error:
            self._silent_until = time.monotonic() + SILENCE_S
            log.debug("notice not sent", job_id=job_id, error=str(error))

    def ping(self) -> None:
        """Ask the broker for a sign of life; raises redis.RedisError if there is none."""
        self._client.ping()

    def close(self) -> None:
        """Close the connections."""
        self._client.close()


class Listener:
    """The receiving end: one subscription, which all waiters of the process share.

    Once `ending` is set, each waiter answers with the job's present state, at the latest when it next looks.
    """

    def __init__(self, url: str) -> None:
        self.ending = False
        self._url = url
        self._watchers: dict[str, set[asyncio.Event]] = defaultdict(set)
        self._waiters: dict[str, set[asyncio.Event]] = defaultdict(set)
        self._ended: deque[str] = deque(maxlen=ENDS_KEPT)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Listen for as long as the block lasts."""
        task = asyncio.create_task(self._listen())
        try:
            yield
        finally:
            while not task.done():
                task.cancel()  # more than once: redis-py swallows a cancellation that comes while it connects
                await asyncio.wait([task], timeout=CANCEL_AGAIN_S)

    @contextmanager
    def watching(self, job_id: str) -> Iterator[asyncio.Event]:
        """Give an event that is set whenever the job changes; the watcher clears it before it looks."""
        with _registered(self._watchers, job_id) as changed:
            yield changed

    @contextmanager
    def waiting(self, job_id: str) -> Iterator[asyncio.Event]:
        """Give an event that is set once the job has ended, or at once if the job is among the last that ended."""
        with _registered(self._waiters, job_id) as ended:
            if job_id in self._ended:
                ended.set()
            yield ended

    async def _listen(self) -> None:
        while True:
            try:
                await self._receive()
            except (redis.RedisError, OSError) as error:
                log.debug("no notices", error=str(error))
            except Exception:  # whatever the broker says, the next notices are listened for
                log.exception("no notices for a moment")
            self._wake_all()
            await asyncio.sleep(RECONNECT_S)

    async def _receive(self) -> None:
        async with redis.asyncio.Redis.from_url(self._url) as client, client.pubsub() as subscription:
            await subscription.subscribe(CHANNEL)
            async for message in subscription.listen():
                if message["type"] == "message":
                    self._hear(message["data"].decode(errors="replace"))

    def _hear(self, notice: str) -> None:
        job_id, _, state = notice.partition(" ")
        _wake(self._watchers.get(job_id, ()))
        if state in FINAL:
            self._ended.append(job_id)
            _wake(self._waiters.get(job_id, ()))

    def _wake_all(self) -> None:
        for one in (*self._watchers.values(), *self._waiters.values()):
            _wake(one)


@contextmanager
def _registered(events: dict[str, set[asyncio.Event]], job_id: str) -> Iterator[asyncio.Event]:
    event = asyncio.Event()
    events[job_id].add(event)
    try:
        yield event
    finally:
        events[job_id].discard(event)
        if not events[job_id]:
            del events[job_id]


def _wake(events: Iterable[asyncio.Event]) -> None:
    for event in events:
        event.set()


async def wait_for(event: asyncio.Event, timeout_s: float) -> None:
    """Wait until the event is set or the time is up, whichever comes first."""
    with suppress(TimeoutError):
        await asyncio.wait_for(event.wait(), timeout_s)

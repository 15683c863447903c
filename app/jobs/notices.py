"""Hints that a job has changed, from whoever changed it to whoever waits.

They travel by Redis publish/subscribe and may be lost: a waiter looks at the row now and then as well.
"""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import redis
import redis.asyncio
import structlog

CHANNEL = "enginesmith.jobs"
RECONNECT_S = 1.0
CANCEL_AGAIN_S = 0.1
SOCKET_TIMEOUT_S = 3.0
log = structlog.get_logger()


class Announcer:
    """The sending end; a broker that does not answer costs a log line, never an error."""

    def __init__(self, url: str) -> None:
        self._client = redis.Redis.from_url(
            url, socket_timeout=SOCKET_TIMEOUT_S, socket_connect_timeout=SOCKET_TIMEOUT_S
        )

    def __call__(self, job_id: str) -> None:
        """Say that a job has changed."""
        try:
            self._client.publish(CHANNEL, job_id)
        except redis.RedisError as error:
            log.debug("notice not sent", job_id=job_id, error=str(error))

    def ping(self) -> None:
        """Ask the broker for a sign of life; redis.RedisError."""
        self._client.ping()

    def close(self) -> None:
        """Close the connections."""
        self._client.close()


class Listener:
    """The receiving end: one subscription per process, shared by every waiter in it.

    Once `ending` is set, waiters answer with what there is, at the latest when they next look.
    """

    def __init__(self, url: str) -> None:
        self.ending = False
        self._url = url
        self._waiters: dict[str, set[asyncio.Event]] = defaultdict(set)

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

    @asynccontextmanager
    async def watching(self, job_id: str) -> AsyncIterator[asyncio.Event]:
        """Give an event that is set whenever the job changes; the waiter clears it before it looks."""
        changed = asyncio.Event()
        self._waiters[job_id].add(changed)
        try:
            yield changed
        finally:
            self._waiters[job_id].discard(changed)
            if not self._waiters[job_id]:
                del self._waiters[job_id]

    async def _listen(self) -> None:
        while True:
            try:
                await self._receive()
            except (redis.RedisError, OSError) as error:
                log.debug("no notices", error=str(error))
            self._wake_all()
            await asyncio.sleep(RECONNECT_S)

    async def _receive(self) -> None:
        async with redis.asyncio.Redis.from_url(self._url) as client, client.pubsub() as subscription:
            await subscription.subscribe(CHANNEL)
            async for message in subscription.listen():
                if message["type"] == "message":
                    for changed in self._waiters.get(message["data"].decode(), ()):
                        changed.set()

    def _wake_all(self) -> None:
        for waiters in self._waiters.values():
            for changed in waiters:
                changed.set()


async def wait_for(changed: asyncio.Event, timeout_s: float) -> None:
    """Wait until the event is set or the time is up, whichever comes first."""
    with suppress(TimeoutError):
        await asyncio.wait_for(changed.wait(), timeout_s)

"""Notices that a job has changed, from the process that changed it to those that wait for it.

A notice says the job's id and its present state. It travels by Redis publish/subscribe and may be lost, so a waiter
looks at the job's row from time to time as well.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

import redis
import redis.asyncio
import structlog

from app.jobs.state import State

CHANNEL = "enginesmith.jobs"
RECONNECT_S = 1.0
CANCEL_AGAIN_S = 0.1
SOCKET_TIMEOUT_S = 1.0
SILENCE_S = 5.0
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
    """The receiving end: one subscription for the whole process.

    `hear` is called with each notice's job id and state, and `miss` whenever notices may have been lost.
    """

    def __init__(self, url: str, *, hear: Callable[[str, str], None], miss: Callable[[], None]) -> None:
        self._url = url
        self._hear = hear
        self._miss = miss

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

    async def _listen(self) -> None:
        while True:
            try:
                await self._receive()
            except (redis.RedisError, OSError) as error:
                log.debug("no notices", error=str(error))
            except Exception:  # whatever the broker says, the next notices are listened for
                log.exception("no notices for a moment")
            self._miss()
            await asyncio.sleep(RECONNECT_S)

    async def _receive(self) -> None:
        async with redis.asyncio.Redis.from_url(self._url) as client, client.pubsub() as subscription:
            await subscription.subscribe(CHANNEL)
            async for message in subscription.listen():
                if message["type"] == "message":
                    job_id, _, state = message["data"].decode(errors="replace").partition(" ")
                    self._hear(job_id, state)


async def wait_for(event: asyncio.Event, timeout_s: float) -> bool:
    """Wait until the event is set or the time is up, whichever comes first; return whether it is set."""
    with suppress(TimeoutError):
        await asyncio.wait_for(event.wait(), timeout_s)
    return event.is_set()

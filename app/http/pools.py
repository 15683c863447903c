"""The threads that answer requests.

Reads that only need the database have places of their own, so nothing slow keeps them waiting. Each pool has a number
of places and a queue. A request that finds both full is told so at once.
"""

import math
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from contextvars import ContextVar
from functools import partial
from typing import ParamSpec, TypeVar

from anyio import CapacityLimiter, to_thread

from app.errors import Unavailable

READ_PLACES = 16  # a process has database connections for all places, see `app.database`
WORK_PLACES = 20
READ_QUEUE = 512
WORK_QUEUE = 128
PARSE_QUEUE = 64

P = ParamSpec("P")
T = TypeVar("T")


class Pool:
    """Places for requests, and the threads that their work is done in: one place needs one thread at a time."""

    def __init__(self, what: str, *, places: int, queue: int) -> None:
        self._what = what
        self._queue = queue
        self._places = CapacityLimiter(places)
        self._threads = CapacityLimiter(math.inf)  # whoever has a place waits for no thread

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """Hold a place during the block; raises Unavailable "busy" if all places are taken and the queue is full."""
        if self._places.available_tokens <= 0 and self._places.statistics().tasks_waiting >= self._queue:
            raise Unavailable(
                f"The service is busy: {self._queue} requests wait to {self._what} already. Send the request again in "
                "a moment.",
                code="busy",
            )
        async with self._places:
            yield

    async def thread(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call in a thread, for a request that has a place."""
        return await to_thread.run_sync(partial(call, *args, **kwargs), limiter=self._threads)

    async def run(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call in a thread, for a request that was let in before and has no place now; it waits for one."""
        async with self._places:
            return await self.thread(call, *args, **kwargs)


class Pools:
    """The pools of one process: `reads` for what only needs the database, `work` for the rest, `parsing` for bodies."""

    def __init__(self) -> None:
        self.reads = Pool("be read", places=READ_PLACES, queue=READ_QUEUE)
        self.work = Pool("be worked on", places=WORK_PLACES, queue=WORK_QUEUE)
        self.parsing = Pool("be parsed", places=1, queue=PARSE_QUEUE)


# The pool of the request that the present task answers; `Route` sets it.
current_pool: ContextVar[Pool] = ContextVar("current_pool")

"""The threads that answer requests.

Reads that only need the database have places of their own, so nothing slow keeps them waiting. Each pool has a number
of places and a queue, in which addresses take turns. A request that finds both full is told so at once, unless another
address has more requests in the queue: then the newest one of those is told instead.
"""

import asyncio
import math
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from contextvars import ContextVar
from functools import partial
from typing import ParamSpec, TypeVar

from anyio import CapacityLimiter, to_thread

from app.errors import Unavailable
from app.http.turns import Line, current_address

READ_PLACES = 16  # a process has database connections for all places, see `app.database`
WORK_PLACES = 20
READ_QUEUE = 512
WORK_QUEUE = 128
PARSE_QUEUE = 64
TRANSFER_PLACES = 40

P = ParamSpec("P")
T = TypeVar("T")


class Pool:
    """Places for requests, and the threads that their work is done in: one place needs one thread at a time.

    One address has at most `share` of the places, so the next request of another one finds a place free.
    """

    def __init__(self, what: str, *, places: int, queue: int, share: int | None = None) -> None:
        self._what = what
        self._queue = queue
        self._free = places
        self._share = places if share is None else share
        self._taken: Counter[str] = Counter()  # places by address
        self._line: Line[asyncio.Future[None]] = Line()
        self._threads = CapacityLimiter(math.inf)  # whoever has a place waits for no thread

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """Hold a place during the block; raises Unavailable "busy" if there is none and no room to wait for one."""
        address = current_address.get()
        if not self._has_place(address) and self._line.size >= self._queue:
            longest = self._line.longest(address)
            if longest == address:
                raise self._busy()
            newest = self._line.newest(longest)
            self._line.leave(longest, newest)
            if not newest.done():
                newest.set_exception(self._busy())
        await self._enter(address)
        try:
            yield
        finally:
            self._leave(address)

    async def thread(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call in a thread, for a request that has a place."""
        return await to_thread.run_sync(partial(call, *args, **kwargs), limiter=self._threads)

    async def run(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call in a thread, for a request that was let in before and has no place now; it waits for one."""
        address = current_address.get()
        await self._enter(address)
        try:
            return await self.thread(call, *args, **kwargs)
        finally:
            self._leave(address)

    def _has_place(self, address: str) -> bool:
        return self._free > 0 and self._taken[address] < self._share

    async def _enter(self, address: str) -> None:
        if self._has_place(address):  # whoever waits has its share already
            self._take(address)
            return
        turn = asyncio.get_running_loop().create_future()
        self._line.join(address, turn)
        try:
            await turn
        except asyncio.CancelledError:
            self._line.leave(address, turn)
            if not turn.cancelled() and turn.exception() is None:  # it was its turn in that very moment
                self._leave(address)
            raise

    def _take(self, address: str) -> None:
        self._free -= 1
        self._taken[address] += 1

    def _leave(self, address: str) -> None:
        self._free += 1
        self._taken[address] -= 1
        if not self._taken[address]:
            del self._taken[address]
        while self._free and (found := self._line.next(self._has_place)) is not None:
            called, turn = found
            if not turn.done():  # else it is going
                self._take(called)
                turn.set_result(None)

    def _busy(self) -> Unavailable:
        return Unavailable(
            f"The service is busy: {self._queue} requests wait to {self._what} already. Send the request again in a "
            "moment.",
            code="busy",
        )


class Pools:
    """The pools of one process.

    `reads` is for what only needs the database, `parsing` for bodies, `transfers` for blobs, `work` for the rest. A
    blob takes a place for each of its parts, and always waits for one.
    """

    def __init__(self) -> None:
        self.reads = Pool("be read", places=READ_PLACES, queue=READ_QUEUE, share=READ_PLACES // 2)
        self.work = Pool("be worked on", places=WORK_PLACES, queue=WORK_QUEUE, share=WORK_PLACES // 2)
        self.transfers = Pool("be transferred", places=TRANSFER_PLACES, queue=0, share=TRANSFER_PLACES // 2)
        self.parsing = Pool("be parsed", places=1, queue=PARSE_QUEUE)


# The pool of the request that the present task answers; `Route` sets it.
current_pool: ContextVar[Pool] = ContextVar("current_pool")

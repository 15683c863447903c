"""Room for requests that need children."""

import asyncio
from collections.abc import Callable, Hashable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any, Final, Generic, ParamSpec, TypeVar

from app.children.channel import Answerer, no_answers
from app.children.fork_server import ForkServer
from app.children.limits import ChildLimits
from app.http.pools import Pool, current_pool
from app.scratch import scratch_folder

CHILDREN: Final = 2  # of one house at a time
WAITING: Final = 30  # requests of one house that may wait for a child

P = ParamSpec("P")
T = TypeVar("T")
MadeT = TypeVar("MadeT")
ResultT = TypeVar("ResultT")


@dataclass(frozen=True, slots=True)
class Order(Generic[MadeT, ResultT]):
    """What a request wants of a house.

    `make` needs children. It gives the same for equal keys. `keep` records what was made, for this request.
    """

    key: Hashable
    make: Callable[[], MadeT]
    keep: Callable[[MadeT], ResultT]


class House:
    """Requests that need children, of which so many are worked on at a time; addresses take turns."""

    def __init__(
        self,
        server: ForkServer,
        scratch: Path,
        *,
        children: int = CHILDREN,
        waiting: int = WAITING,
        what: str = "have uploads read",
    ) -> None:
        self._pool = Pool(what, places=children, queue=waiting)
        self._server = server
        self._scratch = scratch
        self._lock = Lock()
        self._shared: dict[Hashable, Future[Any]] = {}
        self._making: dict[Hashable, asyncio.Task[Any]] = {}  # changed on the event loop only

    async def fill(self, order: Callable[P, Order[Any, ResultT]], *args: P.args, **kwargs: P.kwargs) -> ResultT:
        """Return what a request has ordered; `order(*args, **kwargs)` checks the request, in a thread of its pool.

        Orders with one key at one time share a single call of `make` and take the room of one. Raises Unavailable
        "busy" at once if the house is full.
        """
        pool = current_pool.get()
        async with pool.place():
            ordered = await pool.thread(order, *args, **kwargs)
        made = await asyncio.shield(self._started(ordered))
        return await pool.run(ordered.keep, made)

    async def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call `work`, which needs children, in a thread; raises Unavailable "busy" at once if the house is full."""
        async with self._pool.place():
            return await self._pool.thread(work, *args, **kwargs)

    def _started(self, order: Order[Any, Any]) -> asyncio.Task[Any]:
        """Return the task that makes what is ordered; it belongs to no request, so it outlives a client that goes."""
        task = self._making.get(order.key)
        if task is None:
            task = self._making[order.key] = asyncio.create_task(self.run(order.make))
            task.add_done_callback(lambda _: self._making.pop(order.key))
        return task

    @contextmanager
    def folder(self, kind: str) -> Iterator[Path]:
        """Make a folder for one child, give its absolute path, and remove it when the block ends."""
        with scratch_folder(self._scratch, kind) as folder:
            yield folder.resolve()

    def child(
        self,
        function: str,
        task: Mapping[str, Any],
        limits: ChildLimits,
        directory: Path,
        answers: Answerer = no_answers,
    ) -> dict[str, Any]:
        """Run a function in a child; see `ForkServer.run`."""
        return self._server.run(function, task, limits, directory, answers)

    def share(self, key: Hashable, work: Callable[[], T]) -> T:
        """Return what `work` returns or raises; threads that call with one key at one time share a single call of it.

        This is for parts of what is made: different orders may need the same part.
        """
        with self._lock:
            running: Future[T] | None = self._shared.get(key)
            mine: Future[T] = Future()
            if running is None:
                self._shared[key] = mine
        if running is not None:
            return running.result()
        try:
            mine.set_result(work())
        except BaseException as error:
            mine.set_exception(error)
            raise
        finally:
            with self._lock:
                del self._shared[key]
        return mine.result()

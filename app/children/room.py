"""Room for requests of one sort: so many run, so many wait, and the next one is refused at once."""

from collections.abc import Callable
from functools import partial
from typing import ParamSpec, TypeVar

from anyio import CapacityLimiter, to_thread

from app.errors import Unavailable

P = ParamSpec("P")
T = TypeVar("T")


class Room:
    """Requests that take long. They have threads of their own, so those which wait keep no other request waiting.

    `running` says how many of them are worked on at a time, which is up to the work itself. `what` says what is done.
    """

    def __init__(self, *, running: int, waiting: int, what: str) -> None:
        self._running, self._waiting, self._what = running, waiting, what
        self._size = running + waiting
        self._inside = 0  # changed on the event loop only
        self._threads = CapacityLimiter(max(1, self._size))

    async def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call `work` in a thread of this room; raises Unavailable "busy" at once if the room is full."""
        if self._inside >= self._size:
            raise Unavailable(
                f"{self._running} {self._what}, and {self._waiting} requests wait for that. "
                "Send the request again in a moment.",
                code="busy",
            )
        self._inside += 1
        try:
            return await to_thread.run_sync(partial(work, *args, **kwargs), limiter=self._threads)
        finally:
            self._inside -= 1

"""Turns: of those who wait, the addresses take turns, and within an address whoever came first goes first.

So a client that sends a thousand requests at once keeps its own requests waiting, and no others.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from contextvars import ContextVar

Turn = asyncio.Future[None]

# The address that the present task works for, "" if for none; `Beginning` sets it.
current_address: ContextVar[str] = ContextVar("current_address", default="")


class Line:
    """Those who wait, by address."""

    def __init__(self) -> None:
        self._waiting: dict[str, deque[Turn]] = {}  # the address whose turn it is comes first
        self.size = 0

    async def wait(self, address: str, *, missed: Callable[[], None]) -> None:
        """Return once it is this one's turn; if it goes in that very moment, `missed` is called."""
        turn: Turn = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(address, deque()).append(turn)
        self.size += 1
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                self._forget(address, turn)
            elif turn.exception() is None:
                missed()
            raise

    def call(self, may_come: Callable[[str], bool] = lambda _: True) -> str | None:
        """Let in the next one of the first address that may come, and return the address; None if there is none."""
        while (address := next(filter(may_come, self._waiting), None)) is not None:
            own = self._waiting.pop(address)
            turn = own.popleft()
            self.size -= 1
            if own:
                self._waiting[address] = own  # behind all others
            if not turn.done():  # else it is going
                turn.set_result(None)
                return address
        return None

    def give_way(self, address: str, refusal: Exception) -> bool:
        """Make room for one of this address: send away the newest one of the address that has the most here.

        Returns False if that is this address.
        """
        longest = max(self._waiting, key=lambda one: len(self._waiting[one]), default=address)
        if len(self._waiting.get(longest, ())) <= len(self._waiting.get(address, ())):
            return False
        turn = self._waiting[longest][-1]
        self._forget(longest, turn)
        if not turn.done():
            turn.set_exception(refusal)
        return True

    def _forget(self, address: str, turn: Turn) -> None:
        own = self._waiting.get(address)
        if own is None or turn not in own:
            return
        own.remove(turn)
        self.size -= 1
        if not own:
            del self._waiting[address]

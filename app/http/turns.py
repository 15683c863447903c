"""Turns: of those who wait, the addresses take turns, and within an address whoever came first goes first.

So a client that sends a thousand requests at once keeps its own requests waiting, and no others.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from contextvars import ContextVar
from typing import Generic, TypeVar

T = TypeVar("T")

# The address that the present task works for, "" if for none; `Beginning` sets it.
current_address: ContextVar[str] = ContextVar("current_address", default="")


class Line(Generic[T]):
    """Those who wait, by address."""

    def __init__(self) -> None:
        self._waiting: dict[str, deque[T]] = {}  # the address whose turn it is comes first
        self.size = 0

    def join(self, address: str, one: T) -> None:
        """Put one behind the others of its address."""
        self._waiting.setdefault(address, deque()).append(one)
        self.size += 1

    def next(self, may_come: Callable[[str], bool] = lambda _: True) -> tuple[str, T] | None:
        """Take out the next one of the first address that may come; None if there is none."""
        address = next(filter(may_come, self._waiting), None)
        if address is None:
            return None
        own = self._waiting.pop(address)
        one = own.popleft()
        self.size -= 1
        if own:
            self._waiting[address] = own  # behind all others
        return address, one

    def longest(self, address: str) -> str:
        """Return the address that has the most here; `address` if none has more than that."""
        return max((address, *self._waiting), key=lambda one: len(self._waiting.get(one, ())))

    def newest(self, address: str) -> T:
        """Return the one of an address that came last."""
        return self._waiting[address][-1]

    def leave(self, address: str, one: T) -> None:
        """Take one out, if it is still here."""
        own = self._waiting.get(address, deque())
        with suppress(ValueError):
            own.remove(one)
            self.size -= 1
        if not own:
            self._waiting.pop(address, None)


class LoopTurns(Generic[T]):
    """Calls `begin` for so many with each turn of the event loop; the others wait in a line."""

    def __init__(self, begin: Callable[[T], None], *, at_once: int) -> None:
        self.line: Line[T] = Line()
        self._begin = begin
        self._at_once = self._left = at_once  # `_left` of this turn
        self._is_asked = False  # for the next turn

    def add(self, address: str, one: T) -> None:
        """Begin with one now, or in a later turn."""
        self._ask()
        if self._left > 0:  # so nobody waits
            self._left -= 1
            self._begin(one)
        else:
            self.line.join(address, one)

    def _ask(self) -> None:
        if not self._is_asked:
            self._is_asked = True
            asyncio.get_running_loop().call_soon(self._turn)

    def _turn(self) -> None:
        self._is_asked = False
        self._left = self._at_once
        while self._left > 0 and (found := self.line.next()) is not None:
            self._ask()
            self._left -= 1
            self._begin(found[1])

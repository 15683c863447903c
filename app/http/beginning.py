"""When a request begins to be answered: a few with each turn of the event loop, and the addresses take turns.

A request takes about a millisecond of the event loop before it waits for anything. If a thousand arrive at once and all
of them begin at once, the loop looks at nothing else for a second.
"""

import asyncio

from starlette.types import ASGIApp, Receive, Scope, Send

from app.http.address import address_of
from app.http.turns import Line, current_address

AT_ONCE = 4


class Beginning:
    """Lets AT_ONCE requests begin with each turn of the event loop."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self._line = Line()
        self._left = AT_ONCE  # of this turn
        self._is_due = False  # the next turn is asked for

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request once it is its turn."""
        if scope["type"] == "http":
            address = address_of(scope.get("client"))
            current_address.set(address)
            await self._turn(address)
        await self.app(scope, receive, send)

    async def _turn(self, address: str) -> None:
        if not self._is_due:
            self._is_due = True
            asyncio.get_running_loop().call_soon(self._next_turn)
        if self._left > 0:
            self._left -= 1
        else:
            await self._line.wait(address, missed=lambda: None)

    def _next_turn(self) -> None:
        self._left = AT_ONCE
        while self._left > 0 and self._line.call() is not None:
            self._left -= 1
        self._is_due = self._left < AT_ONCE
        if self._is_due:
            asyncio.get_running_loop().call_soon(self._next_turn)

"""When a request begins to be answered: a few with each turn of the event loop, and the addresses take turns.

A request takes about a millisecond of the event loop before it waits for anything. If a thousand arrive at once and all
of them begin at once, the loop looks at nothing else for a second.
"""

import asyncio

from starlette.types import ASGIApp, Receive, Scope, Send

from app.http.address import address_of
from app.http.turns import LoopTurns, current_address

AT_ONCE = 4


class Beginning:
    """Lets AT_ONCE requests begin with each turn of the event loop."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self._turns: LoopTurns[asyncio.Event] = LoopTurns(asyncio.Event.set, at_once=AT_ONCE)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request once it is its turn."""
        if scope["type"] == "http":
            address, turn = address_of(scope.get("client")), asyncio.Event()
            current_address.set(address)
            self._turns.add(address, turn)
            await turn.wait()
        await self.app(scope, receive, send)

"""Where connections come in.

The kernel hands connections over in the order in which they came, whoever they are from. So all are taken from it at
once, and they then take turns by address: a few become connections of the server with each turn of the event loop.
"""

import asyncio
import errno
import socket
from collections.abc import Callable
from contextlib import suppress

import structlog

from app.connections.crowd import Crowd
from app.connections.refusals import CROWDED_OUT
from app.http.address import address_of
from app.http.turns import LoopTurns

TAKEN_AT_ONCE = 256
ADMITTED_AT_ONCE = 8
NO_DESCRIPTOR_S = 0.5  # so long nothing is taken if the machine has no descriptor or memory left
GONE = {errno.ECONNABORTED, errno.EPROTO, errno.EPERM}
log = structlog.get_logger()


class Door:
    """Takes connections from one listening socket, like an `asyncio.Server`.

    At most `Limits.at_the_door` wait. If there are more, the oldest of the address that has the most here is refused.
    """

    def __init__(self, listener: socket.socket, protocol: Callable[[], asyncio.Protocol], crowd: Crowd) -> None:
        self._listener = listener
        self._protocol = protocol
        self._crowd = crowd
        self._loop = asyncio.get_running_loop()
        self._turns: LoopTurns[socket.socket] = LoopTurns(self._admit, at_once=ADMITTED_AT_ONCE)
        self._admitting: set[asyncio.Task[None]] = set()
        self._is_closed = False
        listener.settimeout(0)
        self._open()

    def close(self) -> None:
        """Take no more connections; those that wait are closed."""
        self._is_closed = True
        self._loop.remove_reader(self._listener)
        while (found := self._turns.line.next()) is not None:
            found[1].close()

    async def wait_closed(self) -> None:
        """Return at once: nothing goes on once the door is closed."""

    def _open(self) -> None:
        if not self._is_closed:
            self._loop.add_reader(self._listener, self._take)

    def _take(self) -> None:
        for _ in range(TAKEN_AT_ONCE):
            try:
                connection, client = self._listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in GONE:
                    continue
                log.warning("no connection can be taken", error=error.strerror)
                self._loop.remove_reader(self._listener)
                self._loop.call_later(NO_DESCRIPTOR_S, self._open)
                return
            self._come(address_of(client or None), connection)

    def _come(self, address: str, connection: socket.socket) -> None:
        connection.settimeout(0)
        line = self._turns.line
        if line.size >= self._crowd.limits.at_the_door:
            longest = line.longest(address)
            if (oldest := line.next(longest.__eq__)) is not None:
                self._refuse(oldest[1])
        self._turns.add(address, connection)

    def _refuse(self, connection: socket.socket) -> None:
        self._crowd.ended(CROWDED_OUT.code)
        with suppress(OSError):  # it has gone, or takes nothing
            connection.send(CROWDED_OUT.answer)
        connection.close()

    def _admit(self, connection: socket.socket) -> None:
        task = self._loop.create_task(self._connect(connection))
        self._admitting.add(task)
        task.add_done_callback(self._admitting.discard)

    async def _connect(self, connection: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(self._protocol, connection)
        except OSError:  # it has gone
            connection.close()

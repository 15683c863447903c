"""One connection: uvicorn's HTTP protocol, with limits of size and time."""

import asyncio
import fcntl
import sys
import termios
from collections import deque
from enum import Enum
from typing import Any, Final

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from app.connections.crowd import STALL_S, Crowd
from app.connections.refusals import (
    BODY_TOO_SLOW,
    CROWDED_OUT,
    HEADERS_TOO_LARGE,
    HEADERS_TOO_SLOW,
    MALFORMED,
    TOO_MANY_CONNECTIONS,
    Refusal,
)
from app.http.address import address_of

PIPELINED: Final = 16  # requests that may wait behind the one that is being answered
FIELD_COST: Final = 32  # bytes that each header counts for beyond its own, as in HTTP/2 (RFC 9113, 6.5.2)
LINGER_S: Final = 2.0  # so long a refused client is listened to, or a reset would take the refusal from it
UNREAD_S: Final = 30.0  # so long the rest of a body is received after its request was answered with an error
HEAD_PART: Final = 16 * 1024  # bytes of heads that are parsed before it is looked at whether to go on
LARGE_READ: Final = 64 * 1024  # bytes that came at once, so more may be here already


class Crowded(ServerState):
    """What the connections of one server share."""

    def __init__(self, crowd: Crowd) -> None:
        super().__init__()
        self.crowd = crowd


class Awaited(Enum):
    """What the client sends next."""

    REQUEST = "a new request, of which no byte is here"
    HEAD = "the rest of a request's head"
    BODY = "the rest of a request's body"
    NOTHING = "nothing that is read: the connection ends"


class LimitedProtocol(HttpToolsProtocol):
    """Ends a connection whose client sends too much at once, or sends or takes too slowly.

    The parser's callbacks only note what has gone wrong, in `_fault`: the connection ends once the parser has returned.
    As long as an answer is owed or begun, its connection is not ended for what arrives behind the request.
    """

    server_state: Crowded

    def __init__(
        self,
        config: Config,
        server_state: Crowded,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.app = self._noting_status(self.app)
        self.address = ""
        self._crowd = server_state.crowd
        self._limits = server_state.crowd.limits
        self._awaited = Awaited.REQUEST
        self._unanswered: deque[RequestResponseCycle] = deque()  # the first one is with the application
        self._deadline: float | None = None  # when the connection ends, unless an answer is owed
        self._fault: Refusal | None = None
        self._status = 0  # of the last answer
        self._field_bytes = 0  # of a head, or of a body's trailers
        self._line_bytes = 0  # read since a head began or a part of a body arrived, most of them in lines not finished
        self._steps = 0  # grows whenever a head begins or ends, or a part of a body arrives
        self._body_bytes = 0  # since the last check
        self._body_moved_at = 0.0
        self._body_slow_since: float | None = None
        self._untaken: int | None = None  # bytes of answers that the client had not taken at the last check
        self._taking_slow_since: float | None = None

    # What asyncio calls

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's own
        """Admit the connection, or refuse it if all others are at work."""
        super().connection_made(transport)
        self.address = address_of(self.client)
        now = self.loop.time()
        self._deadline = now + self._limits.header_s
        if not self._crowd.admit(self, now):
            self._crowd.ended(TOO_MANY_CONNECTIONS.code)
            self._awaited = Awaited.NOTHING
            transport.write(TOO_MANY_CONNECTIONS.answer)
            transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Leave the crowd, and tell the application."""
        self._crowd.leave(self)
        self._let_application_go()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse what has arrived, until the connection is about to end.

        uvloop hands over up to 32 parts of 256 KiB before others have their turn, whether or not anybody wants them. So
        a connection from which much comes is read once with each turn of the event loop.
        """
        if len(data) >= LARGE_READ and not self.transport.is_closing():
            self.transport.pause_reading()
            self.loop.call_soon(self._read_on)
        rest = memoryview(data)
        while rest and not self._deaf:
            part = rest if self._awaited is Awaited.BODY else rest[:HEAD_PART]
            rest = rest[len(part) :]
            self._parse(part)

    def pause_writing(self) -> None:
        """Begin to watch how fast the client takes what is sent."""
        super().pause_writing()
        self._untaken = self._count_untaken()

    def resume_writing(self) -> None:
        """Take note that the client has taken what was sent."""
        super().resume_writing()
        self._untaken = self._taking_slow_since = None

    # What the parser calls

    def on_message_begin(self) -> None:
        """Begin to count and to time a request's head."""
        if self._deaf:
            return
        super().on_message_begin()
        self._awaited = Awaited.HEAD
        self._step()
        self._field_bytes = 0
        self._deadline = self.loop.time() + self._limits.header_s

    def on_url(self, url: bytes) -> None:
        """Count the request line."""
        if not self._deaf:
            self._field_bytes += len(url)
            self._check_head()
            super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Count a header, which may also be a trailer behind a body."""
        if not self._deaf:
            self._field_bytes += len(name) + len(value) + FIELD_COST
            self._check_head()
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Begin to answer the request, or queue it behind the one that is being answered."""
        if self._deaf:
            return
        self._awaited = Awaited.BODY
        self._step()
        self._deadline = None
        self._body_slow_since = None
        self._crowd.works(self)
        super().on_headers_complete()
        self._unanswered.append(self.cycle)
        if len(self._unanswered) > PIPELINED:  # the client repeats what was not answered (RFC 9112, 9.3.2)
            self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        """Count the bytes of a body."""
        if not self._deaf:
            self._body_bytes += len(body)
            self._step()
            super().on_body(body)

    def on_message_complete(self) -> None:
        """Wait for the next request."""
        if self._deaf:
            return
        super().on_message_complete()
        if self.cycle.keep_alive:
            self._await(Awaited.REQUEST, self._limits.keep_alive_s)
        else:
            self._awaited = Awaited.NOTHING

    # What the application causes

    def on_response_complete(self) -> None:
        """Wait for the next request, or for the rest of this one's body, which nobody reads any more."""
        self._unanswered.popleft()
        super().on_response_complete()
        if self._awaited is Awaited.BODY and not self._unanswered:
            self._deadline = self.loop.time() + UNREAD_S if self._status >= 400 else None
        elif self._awaited is Awaited.HEAD:
            self._await(Awaited.HEAD, self._limits.header_s)
        elif self._awaited is Awaited.REQUEST:
            self._await(Awaited.REQUEST, self._limits.keep_alive_s)

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 - uvicorn's text
        """Refuse what is no HTTP."""
        self._fault = self._fault or MALFORMED

    def _noting_status(self, app: Any) -> Any:  # noqa: ANN401 - uvicorn types its applications loosely
        async def noting(scope: Any, receive: Any, send: Any) -> None:  # noqa: ANN401 - as above
            async def note(message: Any) -> None:  # noqa: ANN401 - as above
                if message["type"] == "http.response.start":
                    self._status = message["status"]
                await send(message)

            await app(scope, receive, note)

        return noting

    # What the crowd calls

    def check(self, now: float, elapsed: float) -> None:
        """End the connection if its client is too slow; `elapsed` seconds have passed since the last check."""
        self._check_taking(now, elapsed)
        if self.transport.is_closing():
            return
        if self._awaited is Awaited.BODY:
            self._check_body(now, elapsed)
        if self._unanswered or self._deadline is None or now < self._deadline:
            return
        if self._awaited is Awaited.HEAD:
            self._refuse(HEADERS_TOO_SLOW)
        elif self._awaited is Awaited.BODY:
            self._crowd.ended("unread_body")
            self.transport.abort()
        else:
            self.transport.close()

    def stalls(self, now: float) -> bool:
        """Return whether its client has kept the service waiting in the middle of a transfer for STALL_S."""
        slow = [self._taking_slow_since, *([self._body_slow_since, self._body_moved_at] if self._sends_body else [])]
        return any(since is not None and now - since >= STALL_S for since in slow)

    def crowd_out(self) -> None:
        """End the connection, so that another one has room."""
        self._crowd.ended(CROWDED_OUT.code)
        self._crowd.leave(self)
        if self.transport.get_write_buffer_size():
            self.transport.abort()
            return
        if self._awaited is not Awaited.REQUEST and self._may_refuse:
            self.transport.write(CROWDED_OUT.answer)
        self._awaited = Awaited.NOTHING
        self._let_application_go()
        self.transport.close()

    # Parts of the above

    def _read_on(self) -> None:
        if not self.flow.read_paused and not self.transport.is_closing():
            self.transport.resume_reading()

    def _parse(self, part: memoryview) -> None:
        steps = self._steps
        super().data_received(part)  # type: ignore[arg-type]  # the parser takes any buffer
        if self._steps == steps:
            self._line_bytes += len(part)
            self._check_head()
        if self._fault is not None:
            self._refuse(self._fault)

    @property
    def _deaf(self) -> bool:
        return self._awaited is Awaited.NOTHING or self._fault is not None

    @property
    def _may_refuse(self) -> bool:
        """Whether a refusal would be read as the answer to the request that it is about."""
        if not self._unanswered:
            return True
        in_turn = self._awaited is Awaited.BODY and len(self._unanswered) == 1
        return in_turn and not self._unanswered[0].response_started

    @property
    def _sends_body(self) -> bool:
        """Whether it is the client's turn to send more of a body."""
        if self._awaited is not Awaited.BODY or self.flow.read_paused:
            return False
        return self.cycle.response_complete or not self.cycle.waiting_for_100_continue

    def _await(self, awaited: Awaited, patience_s: float) -> None:
        self._awaited = awaited
        now = self.loop.time()
        self._deadline = now + patience_s
        if not self._unanswered:
            self._crowd.waits(self, now)

    def _step(self) -> None:
        self._steps += 1
        self._line_bytes = 0
        self._body_moved_at = self.loop.time()

    def _check_head(self) -> None:
        if max(self._field_bytes, self._line_bytes) > self._limits.header_bytes:
            self._fault = self._fault or HEADERS_TOO_LARGE

    def _check_body(self, now: float, elapsed: float) -> None:
        slow = self._sends_body and self._body_bytes < self._limits.least_rate * elapsed
        self._body_bytes = 0
        self._body_slow_since = (self._body_slow_since or now) if slow else None
        if self._body_slow_since is not None and now - self._body_slow_since >= self._limits.slow_s:
            self._refuse(BODY_TOO_SLOW)

    def _check_taking(self, now: float, elapsed: float) -> None:
        """Look at how much of an answer the client has taken while no more could be sent."""
        stuck = self.transport.get_write_buffer_size() and (self.flow.write_paused or self.transport.is_closing())
        before, self._untaken = self._untaken, self._count_untaken() if stuck else None
        slow = (
            before is not None
            and self._untaken is not None
            and before - self._untaken < self._limits.least_rate * elapsed
        )
        self._taking_slow_since = (self._taking_slow_since or now) if slow else None
        if self._taking_slow_since is not None and now - self._taking_slow_since >= self._limits.slow_s:
            self._crowd.ended("answer_taken_too_slowly")
            self.transport.abort()

    def _count_untaken(self) -> int:
        """Return the bytes that the client's machine has not received, here and in the kernel."""
        queued = fcntl.ioctl(self.transport.get_extra_info("socket"), termios.TIOCOUTQ, bytes(4))
        return self.transport.get_write_buffer_size() + int.from_bytes(queued, sys.byteorder)

    def _refuse(self, refusal: Refusal) -> None:
        """Tell the client why its connection ends; what it still sends is thrown away for a moment."""
        self._fault = None
        self._crowd.ended(refusal.code)
        if not self._may_refuse:
            self._end_after_answers()
            return
        self._awaited = Awaited.NOTHING
        self._let_application_go()
        self.flow.resume_reading()
        self.transport.write(refusal.answer)
        self.transport.write_eof()
        now = self.loop.time()
        self._deadline = now + LINGER_S
        self._crowd.waits(self, now)

    def _end_after_answers(self) -> None:
        """End the connection once the requests before the one that cannot be answered are."""
        if self._awaited is Awaited.BODY:  # that one is with the application, or will be
            self.transport.abort()
        else:
            self._awaited = Awaited.NOTHING
            self.cycle.keep_alive = False

    def _let_application_go(self) -> None:
        """Let the application see that its client has gone."""
        for cycle in self._unanswered:
            cycle.disconnected = True
            cycle.message_event.set()
        self._unanswered.clear()
        self.pipeline.clear()
        self.flow.resume_writing()

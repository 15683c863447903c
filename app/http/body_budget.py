"""The limit of the memory that the JSON bodies of all requests take together."""

import asyncio
from http import HTTPStatus

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.settings import KIB

UPLOADS = "/v1/blobs/"  # uploads have a budget of their own
SMALL = 64 * KIB  # bodies up to this size are not counted, so that large ones never keep them out


class Body:
    """The body of one request: how many bytes of it have arrived, and for how many it is held to account."""

    def __init__(self) -> None:
        self.arrived = 0
        self.counted = 0
        self.wait: asyncio.Timeout | None = None  # for the next part


class BodyBudget:
    """Holds at most `limit` bytes of bodies in memory, of requests that are arriving or being answered.

    If a body needs more, those go that have been arriving for the longest time. If all others have arrived, the body
    itself is refused. Either is answered with 503.
    """

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self.app = app
        self._free = limit
        self._arriving: dict[Body, None] = {}  # those that are counted, the oldest first

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and raise HTTPException 503 where it reads its body if there is no room for that."""
        if scope["type"] != "http" or scope["path"].startswith(UPLOADS):
            await self.app(scope, receive, send)
            return
        body = Body()

        async def counted() -> Message:
            message = await self._next(body, receive)
            self._count(body, len(message.get("body", b"")))
            if not message.get("more_body", False):
                self._arriving.pop(body, None)
            return message

        try:
            await self.app(scope, counted, send)
        finally:
            self._release(body)

    async def _next(self, body: Body, receive: Receive) -> Message:
        if body not in self._arriving:
            return await receive()
        try:
            async with asyncio.timeout(None) as body.wait:
                return await receive()
        except TimeoutError as error:
            raise _no_room() from error
        finally:
            body.wait = None

    def _count(self, body: Body, nbytes: int) -> None:
        body.arrived += nbytes
        if not nbytes or body.arrived <= SMALL:
            return
        self._arriving.setdefault(body)
        while self._free < body.arrived - body.counted:
            oldest = next((other for other in self._arriving if other is not body), None)
            if oldest is None:
                raise _no_room()
            self._release(oldest)
            if oldest.wait is not None:
                oldest.wait.reschedule(asyncio.get_running_loop().time())
        self._free -= body.arrived - body.counted
        body.counted = body.arrived

    def _release(self, body: Body) -> None:
        self._arriving.pop(body, None)
        self._free += body.counted
        body.counted = 0


def _no_room() -> HTTPException:
    detail = (
        "The bodies of other requests take all the memory that ENGINESMITH_MAX_BUFFERED_BYTES gives to them, and this "
        "one had not arrived. Send the request again in a moment, and send it whole."
    )
    return HTTPException(HTTPStatus.SERVICE_UNAVAILABLE, detail, {"Retry-After": "1"})

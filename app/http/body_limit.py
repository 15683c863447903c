"""The limit of a JSON body's size.

Starlette's own limit answers in plain text. This one raises an exception while the body is read, so the answer is
problem+json like any other error.
"""

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

UPLOADS = "/v1/blobs/"  # uploads are streamed and have a limit of their own


class BodyLimit:
    """Refuses a body of more than `limit` bytes before it is read into memory."""

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self.app = app
        self.limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and raise HTTPException 413 once its body exceeds the limit."""
        if scope["type"] != "http" or scope["path"].startswith(UPLOADS):
            await self.app(scope, receive, send)
            return
        declared = Headers(scope=scope).get("content-length", "0")
        received = int(declared) if declared.isdecimal() and int(declared) > self.limit else 0

        async def limited() -> Message:
            nonlocal received
            self._check(received)
            message = await receive()
            received += len(message.get("body", b""))
            self._check(received)
            return message

        await self.app(scope, limited, send)

    def _check(self, received: int) -> None:
        if received > self.limit:
            raise HTTPException(413)

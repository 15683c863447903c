"""A JSON body, counted before it is parsed.

The parser makes an object of each value, which takes up to a hundred times the value's bytes. So values and depth are
counted in the text first. Both counts are done by a few passes of compiled code, without an object for each value.
"""

import json
import re
from collections.abc import Awaitable, Callable
from itertools import accumulate
from typing import Any

from fastapi import Request
from starlette.types import Message, Receive, Scope

from app.errors import FieldError, TooLarge
from app.http.pools import Pool
from app.http.request_body import MAX_DEPTH, bad_content, check_content

BYTES_PER_VALUE = 24  # a body may have one value for so many bytes of its limit: dense JSON of rules has 13
PARSED_AT_ONCE = 64 * 1024  # bytes; a longer body is parsed in a thread, since it takes milliseconds
STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)  # the closing quote is optional, so each scan is linear
# What `check_content` may refuse: NUL, lone surrogates, and numbers that are none or that are too large for a float.
SUSPICIOUS = re.compile(rb"\\u0000|\\u[dD][89a-fA-F]|\xed[\xa0-\xbf]|NaN|Infinity|[eE]\+?\d{3}|\d{300}")
NOT_BRACKETS = bytes(byte for byte in range(256) if byte not in b"[]{}")
STEP = [(byte in b"[{") - (byte in b"]}") for byte in range(256)]


class JsonRequest(Request):
    """A request whose body is read up to a limit in bytes, and is parsed as `parse` says."""

    def __init__(self, scope: Scope, receive: Receive, *, limit: int, parsing: Pool) -> None:
        super().__init__(scope, limited(receive, Request(scope), limit))
        self._limit = limit
        self._parsing = parsing
        self._value: Any = None
        self._fault: Exception | None = None

    async def load(self) -> None:
        """Read and parse the body; raises TooLarge, Invalid "bad_content" or Unavailable "busy".

        If the body is not JSON, `json` raises that.
        """
        body = await self.body()
        if not body:
            return
        try:
            if len(body) <= PARSED_AT_ONCE:
                self._value = parse(body, self._limit)
            else:
                async with self._parsing.place():
                    self._value = await self._parsing.thread(parse, body, self._limit)
        except (ValueError, RecursionError) as fault:
            self._fault = fault

    async def json(self) -> Any:  # noqa: ANN401 - any JSON
        """Return the value of the body once it is loaded; raises ValueError or RecursionError if it is not JSON."""
        if self._fault is not None:
            raise self._fault
        return self._value


def limited(receive: Receive, request: Request, limit: int) -> Callable[[], Awaitable[Message]]:
    """Return a `receive` that raises TooLarge "request_entity_too_large" once the body exceeds `limit` bytes."""
    declared = request.headers.get("content-length", "0")
    received = int(declared) if declared.isdecimal() and int(declared) > limit else 0

    async def receive_limited() -> Message:
        nonlocal received
        _check(request, received, limit)
        message = await receive()
        received += len(message.get("body", b""))
        _check(request, received, limit)
        return message

    return receive_limited


def parse(body: bytes, limit: int) -> Any:  # noqa: ANN401 - any JSON
    """Return the value of a JSON text that may have a value for every BYTES_PER_VALUE bytes of `limit`.

    Raises:
        TooLarge: "too_many_values".
        Invalid: "bad_content" if it is too deep, or holds what cannot be stored.
        JSONDecodeError: the text is not JSON.
        ValueError, RecursionError: it is not UTF-8, or has a number of thousands of digits.
    """
    structure = _structure(body, limit // BYTES_PER_VALUE)
    brackets = structure.translate(None, NOT_BRACKETS)
    if max(accumulate(map(STEP.__getitem__, brackets)), default=0) > MAX_DEPTH:
        raise bad_content([FieldError("", f"is nested deeper than {MAX_DEPTH} levels")])
    value = json.loads(body.decode("utf-8-sig", "surrogatepass"))  # some programs write a mark at the start of a text
    if SUSPICIOUS.search(body):
        check_content(value)
    return value


def _structure(body: bytes, most: int) -> bytes:
    """Return the text without its strings; raises TooLarge "too_many_values" if it has more than `most` values."""
    strings = (body.count(b'"') - body.count(b'\\"')) // 2  # at least half of them, and cheap
    if strings > most:
        raise _too_many(most)
    structure = STRING.sub(b"", body)
    if 1 + sum(map(structure.count, (b",", b":", b"[", b"{"))) > most:
        raise _too_many(most)
    return structure


def _too_many(most: int) -> TooLarge:
    return TooLarge(
        f"The body has more than {most} values; names of members count as well. Send less at once; one rule with a "
        "pattern stands for many.",
        code="too_many_values",
    )


def _check(request: Request, received: int, limit: int) -> None:
    if received > limit:
        raise TooLarge(
            f"The body is larger than {limit} bytes, the most that {request.method} {request.url.path} takes. Upload "
            "large content with PUT /v1/blobs/<digest> and name its digest.",
            code="request_entity_too_large",
        )

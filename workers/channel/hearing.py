"""How the worker reads what its engine host says.

The host works on what clients upload, so the worker unpickles nothing that it says. The worker reads the kinds, fields
and types of `messages` only. A frame has a limited length and is never waited for in the middle, so that a host that
falls silent there holds nobody up.
"""

import json
import os
import struct
from collections import deque
from collections.abc import Mapping
from functools import cache
from typing import Any, get_args

from pydantic import TypeAdapter, ValidationError

from workers.channel.messages import BackendError, DamagedFile, Message, Outcome
from workers.channel.replies import Ended, Hello, Refused, Reply, Said

MAX_FRAME_BYTES = 64 << 20  # a benchmark of 100,000 layers has a tenth of that
READ_BYTES = 1 << 20
LENGTH = struct.Struct("!i")  # what `Connection.send_bytes` writes before up to 2 GiB

RESULTS = {kind.__name__: kind for kind in (*get_args(Outcome), Refused)}
KINDS = {kind.__name__: kind for kind in (*get_args(Message), Hello, Ended, Refused)}


class BadReply(Exception):
    """The engine host said what it may not say; the text says what that is."""


def read_frame(frame: bytes) -> Said:
    """Return the message in these bytes; raises BadReply."""
    try:
        said = _read(json.loads(frame), KINDS)
        if isinstance(said, Ended):
            return Reply(_error_or(_read(said.result, RESULTS)), said.residency, said.memory_free)
        return _error_or(said)  # type: ignore[no-any-return]
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(one) for one in first["loc"])
        raise BadReply(f"{error.title} with {where or 'a value'} that it cannot have ({first['msg']})") from error
    except (ValueError, RecursionError) as error:
        raise BadReply("bytes that are no message") from error


class Frames:
    """Reads frames from a socket that may have any number of them, or a part of one."""

    def __init__(self, socket: int) -> None:
        self._socket = socket
        self._buffer = bytearray()
        self._whole: deque[bytes] = deque()

    @property
    def waiting(self) -> bool:
        """Whether a frame is here already."""
        return bool(self._whole)

    def next(self) -> bytes | None:
        """Return the next frame, after one read if none is here; None if it is not here whole.

        Raises BadReply if a frame is too long, EOFError or ConnectionError if the socket has ended.
        """
        if not self._whole:
            self._read()
        return self._whole.popleft() if self._whole else None

    def _read(self) -> None:
        data = os.read(self._socket, READ_BYTES)
        if not data:
            raise EOFError
        self._buffer += data
        start = 0
        while (body := start + LENGTH.size) <= len(self._buffer):
            (length,) = LENGTH.unpack_from(self._buffer, start)
            if not 0 <= length <= MAX_FRAME_BYTES:
                raise BadReply(f"a message of more than {MAX_FRAME_BYTES >> 20} MiB")
            if body + length > len(self._buffer):
                break
            self._whole.append(bytes(self._buffer[body : body + length]))
            start = body + length
        del self._buffer[:start]


def _read(frame: Any, kinds: Mapping[str, type]) -> Any:  # noqa: ANN401 - any message or result
    if not isinstance(frame, dict) or len(frame) != 1:
        raise BadReply("bytes that are no message")
    ((name, value),) = frame.items()
    if name not in kinds:
        raise BadReply(f"a message of the kind {name[:50]!r}, which is none of its kinds")
    return _adapter(kinds[name]).validate_python(value)


@cache
def _adapter(kind: type) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _error_or(value: Any) -> Any:  # noqa: ANN401 - any message or result
    if not isinstance(value, Refused):
        return value
    if value.path is None:
        return BackendError(value.code, value.detail)
    return DamagedFile(value.code, value.detail, value.path)

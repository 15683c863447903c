"""What the engine host says, as bytes and back.

The host works on what clients upload, so the worker unpickles nothing that it says. It says JSON, one message a frame.
A frame names the kind of its message, and the worker reads the kinds, fields and types of `messages` only. A frame has
a limited length and is never waited for in the middle, so that a host that falls silent there holds nobody up.
"""

import json
import os
import struct
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, get_args

from pydantic import TypeAdapter, ValidationError

from workers.channel.messages import BackendError, DamagedFile, Message, Outcome, Residency

MAX_FRAME_BYTES = 64 << 20  # a benchmark of 100,000 layers has a tenth of that
READ_BYTES = 1 << 20
LENGTH = struct.Struct("!i")  # what `Connection.send_bytes` writes before up to 2 GiB


class BadReply(Exception):
    """The engine host said what it may not say; the text says what that is."""


@dataclass(frozen=True, slots=True)
class Hello:
    """What the child works with.

    `device` is {"kind", "name", "memory_total", "memory_free"}, memory in bytes, and more keys if the kind has them.
    `backends` maps the name of each installed backend to {"version", "makes", "loads", "capabilities"}. If the backend
    cannot be used, it is {"version", "unavailable"}, and "unavailable" is the reason with its remedy. `resident_bytes`
    is the memory for engines kept loaded. `installable` says how to install the backends that the device could have and
    that are not installed. `confinement` has each measure by name as {"holds", "detail"}.
    """

    device: Mapping[str, Any]
    backends: Mapping[str, Mapping[str, Any]]
    resident_bytes: int
    installable: str
    confinement: Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Reply:
    """The end of a request: its result, what is resident after it, and the device's free memory in bytes."""

    result: Outcome | BackendError
    residency: Residency
    memory_free: int


Said = Hello | BackendError | Reply | Message


@dataclass(frozen=True, slots=True)
class _Refused:
    """A BackendError; a DamagedFile if it has a path."""

    code: str
    detail: str
    path: str | None = None


@dataclass(frozen=True, slots=True)
class _Ended:
    """A Reply, whose result is a frame again."""

    result: dict[str, Any]
    residency: Residency
    memory_free: int


RESULTS = {kind.__name__: kind for kind in (*get_args(Outcome), _Refused)}
KINDS = {kind.__name__: kind for kind in (*get_args(Message), Hello, _Ended, _Refused)}


def frame_of(said: Said) -> bytes:
    """Return a message as bytes."""
    return json.dumps(_tagged(said), default=_plain).encode()


def read_frame(frame: bytes) -> Said:
    """Return the message in these bytes; raises BadReply."""
    try:
        said = _read(json.loads(frame), KINDS)
        if isinstance(said, _Ended):
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


def _tagged(said: Any) -> dict[str, Any]:  # noqa: ANN401 - any message or result
    if isinstance(said, BackendError):
        said = _Refused(said.code, said.detail, getattr(said, "path", None))
    elif isinstance(said, Reply):
        said = _Ended(_tagged(said.result), said.residency, said.memory_free)
    return {type(said).__name__: said}


def _plain(value: Any) -> Any:  # noqa: ANN401 - what JSON has no form for
    if is_dataclass(value):
        return {field.name: getattr(value, field.name) for field in fields(value)}
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "item"):  # a number of numpy's
        return value.item()
    raise TypeError(f"{type(value).__name__} has no form in JSON")


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
    if not isinstance(value, _Refused):
        return value
    if value.path is None:
        return BackendError(value.code, value.detail)
    return DamagedFile(value.code, value.detail, value.path)

"""What a child and its parent say to each other over one socket.

The parent sends the work. The child may then ask questions, one after the other, and gets the bytes that answer each.
Work and questions are JSON. Each is a frame: its length in 8 bytes, little endian, and its bytes. An answer is any
number of frames and an empty one.
"""

import json
import socket
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final

LENGTH: Final = struct.Struct("<Q")
MAX_QUESTION_BYTES: Final = 64 * 1024

Question = Mapping[str, Any]
Ask = Callable[[Question], Iterator[bytes]]  # in the child
Answerer = Callable[[Question], Iterable[bytes]]  # in the parent
Left = Callable[[], float]  # how many seconds are left; raises TimeoutError if there are none


class Broken(Exception):
    """The other side said something that is no frame, or went away."""


def no_answers(_question: Question) -> Iterable[bytes]:
    """Answer nothing: for work that has no questions."""
    raise Broken


def send_json(channel: socket.socket, value: object) -> None:
    """Send one JSON value."""
    _send(channel, json.dumps(value).encode())


def receive_json(channel: socket.socket, most: int | None = None, left: Left | None = None) -> Any:  # noqa: ANN401 - any JSON
    """Receive one JSON value within `left()`; raises Broken if it is longer than `most` bytes, and TimeoutError."""
    return json.loads(_receive(channel, most, left))


def send_answer(channel: socket.socket, pieces: Iterable[bytes]) -> None:
    """Send the bytes that answer a question."""
    for piece in pieces:
        if piece:
            _send(channel, piece)
    channel.sendall(LENGTH.pack(0))


def asking_over(channel: socket.socket) -> Ask:
    """Return the function with which a child asks its parent.

    A whole answer must be read before the next question.
    """

    def ask(question: Question) -> Iterator[bytes]:
        send_json(channel, question)
        while piece := _receive(channel):
            yield piece

    return ask


def _send(channel: socket.socket, data: bytes) -> None:
    channel.sendall(LENGTH.pack(len(data)))
    channel.sendall(data)


def _receive(channel: socket.socket, most: int | None = None, left: Left | None = None) -> bytes:
    (length,) = LENGTH.unpack(_exactly(channel, LENGTH.size, left))
    if most is not None and length > most:
        raise Broken
    return _exactly(channel, length, left)


def _exactly(channel: socket.socket, length: int, left: Left | None) -> bytes:
    data = bytearray(length)
    view = memoryview(data)
    while view:
        if left is not None:
            channel.settimeout(left())  # with each piece, or a byte now and then would stretch it for ever
        count = channel.recv_into(view)
        if not count:
            raise Broken
        view = view[count:]
    return bytes(data)

"""What parent and child say to each other over their socket: pickles, as both are of one installation.

Child to parent: first one `Hello`, or the `BackendError` for which the child ends. Then, for each `Request` of the
parent, any number of messages and one `Reply`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from workers.backends.base import BackendError, Outcome
from workers.resident import Residency


@dataclass(frozen=True, slots=True)
class Hello:
    """What the child works with.

    `device` is {"kind", "name", "memory_total", "memory_free"} with bytes, and more where the kind has more.
    `backends` maps the name of each installed backend to {"version", "makes", "loads", "capabilities"}, or to
    {"version", "unavailable"}, the reason with its remedy. `resident_bytes` is the memory for engines kept loaded.
    """

    device: Mapping[str, Any]
    backends: Mapping[str, Mapping[str, Any]]
    resident_bytes: int


@dataclass(frozen=True, slots=True)
class Reply:
    """The end of a request, what the child keeps resident after it, and the device's free memory in bytes."""

    result: Outcome | BackendError
    residency: Residency
    memory_free: int

"""What the engine host says, as bytes: JSON, one message a frame, which names the kind of its message.

`hearing` reads it. That is a module of its own, because it takes pydantic, which a host does without.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

from workers.channel.messages import BackendError, Message, Outcome, Residency


@dataclass(frozen=True, slots=True)
class Hello:
    """What the child works with.

    `device` is {"kind", "name", "memory_total", "memory_free", "fingerprint"}, memory in bytes, and more keys if the
    kind has them. "fingerprint" is {"digest", "facts"}.
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
class Refused:
    """A BackendError; a DamagedFile if it has a path."""

    code: str
    detail: str
    path: str | None = None


@dataclass(frozen=True, slots=True)
class Ended:
    """A Reply, whose result is a frame again."""

    result: dict[str, Any]
    residency: Residency
    memory_free: int


def frame_of(said: Said) -> bytes:
    """Return a message as bytes."""
    return json.dumps(_tagged(said), default=_plain).encode()


def _tagged(said: Any) -> dict[str, Any]:  # noqa: ANN401 - any message or result
    if isinstance(said, BackendError):
        said = Refused(said.code, said.detail, getattr(said, "path", None))
    elif isinstance(said, Reply):
        said = Ended(_tagged(said.result), said.residency, said.memory_free)
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

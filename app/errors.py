"""The errors that a client can see.

    ServiceError 500 internal_error
    ├── Forbidden 403 forbidden
    ├── NotFound 404 not_found
    ├── Conflict 409 conflict
    ├── PreconditionFailed 412 precondition_failed
    ├── TooLarge 413 too_large
    ├── RangeNotSatisfiable 416 range_not_satisfiable
    ├── Misdirected 421 misdirected
    ├── Invalid 422 invalid
    └── Unavailable 503 unavailable

Raise the class that fits, with a `detail` that names the remedy. `code` is a stable word for programs. A slice passes
a narrower code ("model_not_found") if a client may want to tell that error from others.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

MOST_SHOWN = 100  # characters of a client's own words


@dataclass(frozen=True, slots=True)
class FieldError:
    """One fault in a request; `pointer` is a JSON Pointer (RFC 6901) such as "/files/0"."""

    pointer: str
    detail: str


def json_pointer(*parts: str | int) -> str:
    """Return the JSON Pointer (RFC 6901) that leads through these members, the outermost first."""
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in parts)


def shown(text: str, most: int = MOST_SHOWN) -> str:
    """Return what a client wrote as an error or the log repeats it: cut off if it is longer than `most` characters."""
    return text if len(text) <= most else f"{text[:most]}…"


class ServiceError(Exception):
    """An error that is answered as problem+json (RFC 9457)."""

    status: ClassVar[int] = 500
    title: ClassVar[str] = "Internal error"
    retry_after_s: ClassVar[int | None] = None  # when the same request may work, if that is known
    code: str = "internal_error"

    def __init__(self, detail: str, *, code: str | None = None, errors: Sequence[FieldError] = ()) -> None:
        super().__init__(detail)
        self.detail = detail
        self.code = code or self.code
        self.errors = tuple(errors)


class Forbidden(ServiceError):
    """The caller may not do this."""

    status, title, code = 403, "Forbidden", "forbidden"


class NotFound(ServiceError):
    """The resource does not exist."""

    status, title, code = 404, "Not found", "not_found"


class Conflict(ServiceError):
    """The request contradicts the present state."""

    status, title, code = 409, "Conflict", "conflict"


class PreconditionFailed(ServiceError):
    """An If-Match or If-None-Match header does not hold."""

    status, title, code = 412, "Precondition failed", "precondition_failed"


class TooLarge(ServiceError):
    """The body is larger than the configured limit."""

    status, title, code = 413, "Content too large", "too_large"


class RangeNotSatisfiable(ServiceError):
    """The Range header names no byte of the resource."""

    status, title, code = 416, "Range not satisfiable", "range_not_satisfiable"


class Misdirected(ServiceError):
    """The request names a host that this service does not answer for."""

    status, title, code = 421, "Misdirected request", "misdirected"


class Invalid(ServiceError):
    """The request is well-formed but cannot be fulfilled as it stands."""

    status, title, code = 422, "Unprocessable content", "invalid"


class Unavailable(ServiceError):
    """A database, store or broker that this service needs does not answer; the same request may work later."""

    status, title, code = 503, "Unavailable", "unavailable"
    retry_after_s: ClassVar[int | None] = 1
